// List of the kernels that this processor can run, and the work that all kernels share.
#include "kernel.h"

#include <cstdint>
#include <cstring>

#if defined(__x86_64__)
#include <cpuid.h>
#elif defined(__aarch64__) && defined(__linux__)
#include <sys/auxv.h>
#elif defined(__aarch64__) && defined(__APPLE__)
#include <sys/sysctl.h>
#endif

namespace corrflow {

namespace {

#ifdef CORRFLOW_NEON_DOTPROD
// Return true if the processor has sdot, which Armv8.2 has as an option and Armv8.4 always.
bool has_dotprod() {
#if defined(__linux__)
    return getauxval(AT_HWCAP) & 1ul << 20;  // HWCAP_ASIMDDP of <asm/hwcap.h>
#elif defined(__APPLE__)
    int value = 0;
    size_t size = sizeof value;
    return !sysctlbyname("hw.optional.arm.FEAT_DotProd", &value, &size, nullptr, 0) && value;
#else
    return false;
#endif
}
#endif

#ifdef CORRFLOW_AVX_VNNI
// Return true if the processor has the VNNI instructions for registers of 256 bits. Older compilers cannot name them in
// __builtin_cpu_supports.
bool has_avx_vnni() {
    unsigned eax = 0, ebx, ecx, edx;
    return __get_cpuid_count(7, 1, &eax, &ebx, &ecx, &edx) && eax & 1u << 4;
}
#endif

}  // namespace

void mark_row(const float* values, int N, int H, int W, int y, unsigned char* marks) {
    const std::size_t plane = std::size_t(H) * W;
    unsigned char* row = marks + std::size_t(y) * groups(W);
    for (int x = 0; x < W; x += GROUP) {
        const int columns = W - x < GROUP ? W - x : GROUP;
        const float* from = values + std::size_t(y) * W + x;
        std::uint32_t any = 0;
        for (int n = 0; n < N; ++n, from += plane) {
            std::uint32_t bits[GROUP] = {};
            std::memcpy(bits, from, columns * sizeof(float));
            for (int i = 0; i < GROUP; ++i) any |= bits[i] << 1;  // without the sign: -0 is 0 as well
        }
        row[x / GROUP] = any != 0;
    }
}

std::vector<const Kernel*> kernels_here() {
    std::vector<const Kernel*> kernels;
#ifdef CORRFLOW_AVX2
    __builtin_cpu_init();
    const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
    const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw");
#ifdef CORRFLOW_AVX512_VNNI
    if (avx512 && __builtin_cpu_supports("avx512vnni")) kernels.push_back(&avx512_vnni_kernel);
#endif
#ifdef CORRFLOW_AVX_VNNI
    if (avx2 && has_avx_vnni()) kernels.push_back(&avx_vnni_kernel);
#endif
#ifdef CORRFLOW_AVX512
    if (avx512) kernels.push_back(&avx512_kernel);
#endif
    if (avx2) kernels.push_back(&avx2_kernel);
#endif
#ifdef CORRFLOW_NEON_DOTPROD
    if (has_dotprod()) kernels.push_back(&neon_dotprod_kernel);
#endif
    kernels.push_back(&portable_kernel);
    return kernels;
}

}  // namespace corrflow
