// Part of CUDA that local_soft_copy.cu needs, for a run on the CPU; threads_on_cpu.cpp has the threads.
#pragma once
#include <cmath>
#include <cstdint>

#include "cuda_words_on_cpu.h"

namespace {

#if defined(CORRFLOW_FLOAT32)
inline float to_float(float stored) { return stored; }
inline float from_float(float value) { return value; }
#elif defined(CORRFLOW_FLOAT16)
inline float to_float(Stored bits) {
    _Float16 half;
    __builtin_memcpy(&half, &bits, sizeof half);
    return float(half);
}
inline Stored from_float(float value) {
    const _Float16 half = _Float16(value);
    Stored bits;
    __builtin_memcpy(&bits, &half, sizeof bits);
    return bits;
}
#else
inline float to_float(Stored stored) {
    const std::uint32_t bits = std::uint32_t(stored) << 16;
    float value;
    __builtin_memcpy(&value, &bits, sizeof value);
    return value;
}
inline Stored from_float(float value) {
    std::uint32_t bits;
    __builtin_memcpy(&bits, &value, sizeof bits);
    return Stored((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}
#endif

// Matrix product of the tensor cores, with the GPU's assignment of elements to lanes.
#if !defined(CORRFLOW_FLOAT32) && !defined(CORRFLOW_WITHOUT_TENSOR_CORES)
#define CORRFLOW_TENSOR_CORES 1

inline void check_fragment(const void* at, int pitch, int size) {
    if (reinterpret_cast<std::uintptr_t>(at) % 16) on_cpu::fail("a fragment does not start at a multiple of 16 bytes");
    if (pitch * size % 16) on_cpu::fail("the rows of a fragment are not a multiple of 16 bytes apart");
}

struct Queries {
    const Stored* at;

    explicit Queries(const Stored* queries) : at(queries) {
        check_fragment(queries, QUERY_PITCH, sizeof(Stored));
        ++on_cpu::current->collective;
    }
};

struct Scores {
    float sums[2][4];

    static int query_of(int query) { return threadIdx.x % WARP / 4 + query * 8; }
    static int key_of(int key) { return key / 2 * 8 + threadIdx.x % 4 * 2 + key % 2; }
    float at(int query, int key) const { return sums[key / 2][query * 2 + key % 2]; }

    void clear() { for (int i = 0; i < 8; ++i) sums[i / 4][i % 4] = 0.0f; }

    void add(const Queries& queries, const Stored* keys) {
        check_fragment(keys, KEY_PITCH, sizeof(Stored));
        ++on_cpu::current->collective;
        for (int query = 0; query < QUERIES; ++query)
            for (int key = 0; key < KEYS; ++key)
                for (int channel = 0; channel < SIDE; ++channel)
                    sums[key / 2][query * 2 + key % 2] +=
                        to_float(queries.at[channel * QUERY_PITCH + query_of(query)]) *
                        to_float(keys[channel * KEY_PITCH + key_of(key)]);
    }
};

#endif

}  // namespace
