// VNNI instructions in plain code, for processors without them. Included before kernel_avx_vnni.cpp or
// kernel_avx512_vnni.cpp, which then need AVX2 alone.
#include <immintrin.h>

#include <cstdint>
#include <cstring>

namespace {

// Add the products of `share` neighbouring integers to each 32-bit sum: unsigned by signed bytes, or signed 16 bits.
// Not inlined, which would take a minute to compile.
template <typename A, typename B, int share, typename Vector>
__attribute__((noinline)) Vector add_products_of(Vector sums, Vector a, Vector b) {
    constexpr int count = sizeof(Vector) / 4;
    std::int32_t own[count];
    A first[count * share];
    B second[count * share];
    std::memcpy(own, &sums, sizeof sums);
    std::memcpy(first, &a, sizeof a);
    std::memcpy(second, &b, sizeof b);
    for (int i = 0; i < count * share; ++i) own[i / share] += std::int32_t(first[i]) * second[i];
    std::memcpy(&sums, own, sizeof sums);
    return sums;
}

}  // namespace

#define _mm256_dpbusd_avx_epi32 add_products_of<std::uint8_t, std::int8_t, 4>
#define _mm256_dpwssd_avx_epi32 add_products_of<std::int16_t, std::int16_t, 2>
#define _mm512_dpbusd_epi32 add_products_of<std::uint8_t, std::int8_t, 4>
#define _mm512_dpwssd_epi32 add_products_of<std::int16_t, std::int16_t, 2>
#define __AVXVNNI__ 1
#define __AVX512VNNI__ 1
