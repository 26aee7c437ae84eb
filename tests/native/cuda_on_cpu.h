// Enough of CUDA to run local_soft_copy.cu on the CPU, one block after another and one fibre for each thread.
//
// A warp runs as far as it can before the next one is looked at, and the order of warps and lanes is the caller's. What
// a missing barrier leaves open is thus really done in the wrong order: a reader runs before its writer in one order, a
// writer before the last reader in another. Shared memory is NaN before every block. Threads that wait at different
// barriers, warps that split before a collective instruction and misaligned fragments end the program with a message.
#pragma once
#include <ucontext.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <random>
#include <vector>

#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/common_interface_defs.h>
#endif

namespace on_cpu {

struct Index {
    unsigned x, y, z;
};

constexpr std::size_t STACK = 128 * 1024;
constexpr int LANES = 32;

enum class Wait { none, warp, block, ended };

struct Fibre {
    ucontext_t context;
    std::unique_ptr<char[]> stack{new char[STACK]};
    Index index{};
    Wait wait = Wait::none;
    int line = 0;         // of the barrier that it waits at
    long collective = 0;  // warp-wide instructions so far
    float exchanged[2];   // for shuffles, one of two in turn
    unsigned bits[2];
    int turn = 0;
};

inline std::vector<Fibre> fibres;
inline Fibre* current = nullptr;
inline ucontext_t scheduler;
inline std::function<void()> body;
inline Index block_index, grid_size;

[[noreturn]] inline void fail(const char* what) {
    std::fprintf(stderr, "cuda on cpu: %s\n", what);
    std::exit(3);
}

inline void switch_to(ucontext_t& from, ucontext_t& to, const void* stack, std::size_t size) {
#ifdef __SANITIZE_ADDRESS__
    void* fake = nullptr;
    __sanitizer_start_switch_fiber(&fake, stack, size);
    swapcontext(&from, &to);
    __sanitizer_finish_switch_fiber(fake, nullptr, nullptr);
#else
    (void)stack, (void)size;
    swapcontext(&from, &to);
#endif
}

inline const void* scheduler_stack = nullptr;
inline std::size_t scheduler_size = 0;

inline void pause(Wait wait, int line) {
    current->wait = wait;
    current->line = line;
    switch_to(current->context, scheduler, scheduler_stack, scheduler_size);
}

inline void enter() {
#ifdef __SANITIZE_ADDRESS__
    __sanitizer_finish_switch_fiber(nullptr, &scheduler_stack, &scheduler_size);
#endif
    body();
    pause(Wait::ended, 0);
}

inline void resume(Fibre& fibre) {
    current = &fibre;
    fibre.wait = Wait::none;
    switch_to(scheduler, fibre.context, fibre.stack.get(), STACK);
}

// All of first .. last wait there, at the same line: then they may go on.
inline bool together(std::size_t first, std::size_t last, Wait wait) {
    for (std::size_t i = first; i < last; ++i)
        if (fibres[i].wait != wait || fibres[i].line != fibres[first].line) return false;
    for (std::size_t i = first; i < last && wait == Wait::warp; ++i)
        if (fibres[i].collective != fibres[first].collective) fail("a warp split before a collective instruction");
    return true;
}

// order: 0 forwards, 1 backwards, otherwise the seed of a shuffle that is another one every time.
class Order {
   public:
    explicit Order(unsigned order) : order(order), generator(order) {}

    std::vector<int> of(int count) {
        std::vector<int> places(count);
        for (int i = 0; i < count; ++i) places[i] = order == 1 ? count - 1 - i : i;
        if (order > 1) std::shuffle(places.begin(), places.end(), generator);
        return places;
    }

   private:
    unsigned order;
    std::mt19937 generator;
};

extern "C" char __start_shared_memory[], __stop_shared_memory[];

__attribute__((no_sanitize_address)) inline void poison_shared_memory() {
    for (volatile char* at = __start_shared_memory; at < __stop_shared_memory; ++at) *at = char(0xff);
}

inline void run_block(int threads, Order& order) {
    poison_shared_memory();
    for (int i = 0; i < threads; ++i) {
        Fibre& fibre = fibres[i];
        fibre.index = {unsigned(i), 0, 0};
        fibre.wait = Wait::none;
        fibre.collective = fibre.turn = 0;
        getcontext(&fibre.context);
        fibre.context.uc_stack.ss_sp = fibre.stack.get();
        fibre.context.uc_stack.ss_size = STACK;
        fibre.context.uc_link = nullptr;
        makecontext(&fibre.context, enter, 0);
    }
    const int warps = threads / LANES;
    for (bool first = true;; first = false) {
        if (!first) {
            if (together(0, threads, Wait::ended)) return;
            if (!together(0, threads, Wait::block)) fail("threads wait at different barriers");
        }
        for (int warp : order.of(warps)) {
            const std::size_t begin = std::size_t(warp) * LANES;
            do {
                for (int lane : order.of(LANES)) resume(fibres[begin + lane]);
            } while (together(begin, begin + LANES, Wait::warp));
        }
    }
}

// Every block of the grid; kernel: one thread's work.
inline void run(Index grid, int threads, unsigned order, std::function<void()> kernel) {
    body = std::move(kernel);
    grid_size = grid;
    fibres = std::vector<Fibre>(threads);
    Order places(order);
    for (unsigned z = 0; z < grid.z; ++z)
        for (unsigned y = 0; y < grid.y; ++y)
            for (unsigned x = 0; x < grid.x; ++x) {
                block_index = {x, y, z};
                run_block(threads, places);
            }
}

// Each lane leaves its value, then reads its neighbour's. Two places in turn: the next value never overwrites this one
// before it was read.
inline unsigned exchange(unsigned value, int mask, int line) {
    Fibre& own = *current;
    const int turn = own.turn ^= 1;
    own.bits[turn] = value;
    ++own.collective;
    pause(Wait::warp, line);
    const unsigned thread = own.index.x;
    return fibres[thread / LANES * LANES + ((thread % LANES) ^ mask)].bits[turn];
}

inline float exchange(float value, int mask, int line) {
    unsigned bits;
    std::memcpy(&bits, &value, sizeof bits);
    bits = exchange(bits, mask, line);
    std::memcpy(&value, &bits, sizeof bits);
    return value;
}

}  // namespace on_cpu

#define __global__
#define __device__
#define __launch_bounds__(threads, blocks)
#define __align__(bytes) __attribute__((aligned(bytes)))
#define __shared__ static __attribute__((section("shared_memory")))
#define threadIdx (on_cpu::current->index)
#define blockIdx on_cpu::block_index
#define __syncthreads() on_cpu::pause(on_cpu::Wait::block, __LINE__)
#define __syncwarp() on_cpu::pause(on_cpu::Wait::warp, __LINE__)
#define __shfl_xor_sync(lanes, value, mask) on_cpu::exchange(value, mask, __LINE__)

using std::max;
using std::min;

namespace {

#if defined(CORRFLOW_FLOAT32)
inline float number(float stored) { return stored; }
inline float storage(float value) { return value; }
#elif defined(CORRFLOW_FLOAT16)
inline float number(Stored bits) {
    _Float16 half;
    std::memcpy(&half, &bits, sizeof half);
    return float(half);
}
inline Stored storage(float value) {
    const _Float16 half = _Float16(value);
    Stored bits;
    std::memcpy(&bits, &half, sizeof bits);
    return bits;
}
#else
inline float number(Stored stored) {
    const std::uint32_t bits = std::uint32_t(stored) << 16;
    float value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
}
inline Stored storage(float value) {
    std::uint32_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    return Stored((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}
#endif

// The tensor cores' product. Which lane has which element is left open on the GPU, so any assignment will do here.
// Like there, the lanes need not be in step about memory: only a barrier makes a score visible to another lane.
#if !defined(CORRFLOW_FLOAT32) && !defined(CORRFLOW_WITHOUT_TENSOR_CORES)
#define CORRFLOW_TENSOR_CORES 1

inline void check_fragment(const void* at, int pitch, int size) {
    if (reinterpret_cast<std::uintptr_t>(at) % 32) on_cpu::fail("a fragment does not start at a multiple of 32 bytes");
    if (pitch * size % 16) on_cpu::fail("the rows of a fragment are not a multiple of 16 bytes apart");
}

struct Scores {
    float sums[8];

    void clear() { std::fill(sums, sums + 8, 0.0f); }

    void add(const Stored* queries, const Stored* keys) {
        check_fragment(queries, QUERY_PITCH, sizeof(Stored));
        check_fragment(keys, KEY_PITCH, sizeof(Stored));
        ++on_cpu::current->collective;
        const int first = threadIdx.x % WARP * 8;
        for (int i = 0; i < 8; ++i)
            for (int channel = 0; channel < SIDE; ++channel)
                sums[i] += number(queries[channel * QUERY_PITCH + (first + i) / SIDE]) *
                           number(keys[channel * KEY_PITCH + (first + i) % SIDE]);
    }

    void store(float* scores) const {
        check_fragment(scores, SCORE_PITCH, sizeof(float));
        ++on_cpu::current->collective;
        const int first = threadIdx.x % WARP * 8;
        for (int i = 0; i < 8; ++i) scores[(first + i) % SIDE * SCORE_PITCH + (first + i) / SIDE] = sums[i];
    }
};

#endif

}  // namespace
