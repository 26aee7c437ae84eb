// CUDA keywords of the kernels, for a C++ compiler; threads_on_cpu.cpp has the threads.
#pragma once
#include "threads_on_cpu.h"

#define __global__
#define __device__
#define __launch_bounds__(threads, blocks)
#define __align__(bytes) __attribute__((aligned(bytes)))
#define __shared__ static __attribute__((section("shared_memory")))
#define threadIdx (on_cpu::current->index)
#define blockIdx on_cpu::block_index
#define gridDim on_cpu::grid
#define __syncthreads() on_cpu::pause(on_cpu::Wait::block, __LINE__)
#define __syncwarp() on_cpu::pause(on_cpu::Wait::warp, __LINE__)
#define __shfl_xor_sync(lanes, value, mask) on_cpu::exchange(value, mask, __LINE__)

namespace {

inline int min(int a, int b) { return a < b ? a : b; }
inline int max(int a, int b) { return a < b ? b : a; }

}  // namespace
