// LocalSoftCopy (spec.py), a top-k local cross-attention, in one pass: no score or window is written to device memory.
//
// A block computes a tile of ROWS x 16 queries, one warp per row. It loads the keys within reach of the tile, one
// search window and one row of keys after another: 16 * GROUPS columns and SLICE channels at a time, through registers
// to shared memory. The next keys are loaded while the current ones are multiplied. Each warp computes the scores of
// its 16 queries with 16 keys at a time, and folds them into its running state: an online softmax with its sums, or the
// list of the TOP_K best. Two lanes share a query: each takes every second key column, and both merge at the end. Keys
// come in the order of the tie rule: window, row, column. The kernel always takes `references` and skips unused rows.
//
// launch.py puts the definitions before this file, which includes no header, so NVRTC needs no include path.
#ifndef CORRFLOW_CHANNELS
#error "launch.py writes the definitions for this file"
#endif

namespace {

constexpr int CHANNELS = CORRFLOW_CHANNELS;
constexpr int CLASSES = CORRFLOW_CLASSES;
constexpr int OWN_CLASSES = CORRFLOW_OWN_CLASSES;  // copied by one block
constexpr int CLASS_BLOCKS = CORRFLOW_CLASS_BLOCKS;
constexpr int TOP_K = CORRFLOW_TOP_K;
constexpr float SCALE = CORRFLOW_SCALE;  // log2(e) / temperature, because the hardware computes powers of two
constexpr int ROWS = CORRFLOW_ROWS;
constexpr int GROUPS = CORRFLOW_GROUPS;
constexpr int SLICE = CORRFLOW_SLICE;
// Distance of the rows of a tile, except for the last rows of a frame. SPREAD divides the most common dilation, so all
// queries of a tile search the same rows of keys.
constexpr int SPREAD = CORRFLOW_SPREAD;

// Pair: neighbouring keys in one register, as loaded from device memory and stored to shared memory.
#ifdef CORRFLOW_FLOAT32
using Stored = float;
using Pair = float;
#else
using Stored = unsigned short;
using Pair = unsigned;
#endif

constexpr int SIDE = 16;  // side of a matrix fragment: 16 queries with 16 keys, 16 channels at a time
constexpr int WARP = 32;
constexpr unsigned ALL = 0xffffffffu;
constexpr int THREADS = ROWS * WARP;
constexpr int DEPTH = (CHANNELS + SIDE - 1) / SIDE * SIDE;
constexpr int CHUNK = GROUPS * SIDE;
constexpr int PAD = 16 / sizeof(Stored);  // moves the rows of a fragment to different banks
constexpr int QUERY_PITCH = ROWS * SIDE + PAD;
constexpr int KEY_PITCH = CHUNK + PAD;
constexpr int SCORE_PITCH = SIDE + 4;
constexpr int LANE_CLASSES = (OWN_CLASSES + 1) / 2;
// Key columns of a group that one of the two lanes of a query visits.
constexpr int STEP = 2 * CORRFLOW_SMALLEST_DILATION;
constexpr int VISITS = (SIDE + STEP - 1) / STEP;
// Warps per multiprocessor that the registers are divided among without spills, and their blocks. Without this number,
// newer compilers aim for more warps and spill. Long lists need more registers in float32, which has no tensor cores.
constexpr int MOST_WARPS = sizeof(Stored) == 4 && TOP_K > 5 ? 12 : 16;
constexpr int WARPS = TOP_K <= 10 && OWN_CLASSES <= 16 ? MOST_WARPS : ROWS;
constexpr int BLOCKS = (WARPS + ROWS - 1) / ROWS;
constexpr float LOWEST = -3.402823466e38f;
constexpr unsigned NOWHERE = 0xffffffffu;
constexpr int PAIR = sizeof(Pair) / sizeof(Stored);
constexpr int HELD = (SLICE * CHUNK / PAIR + THREADS - 1) / THREADS;  // pairs of a slice per thread

}  // namespace

#ifndef __CUDACC__
#include "cuda_on_cpu.h"  // tests run this source on the CPU: threads, barriers and the functions below
#else

#if defined(CORRFLOW_FLOAT16) || (defined(CORRFLOW_BFLOAT16) && __CUDA_ARCH__ >= 800)
#define CORRFLOW_TENSOR_CORES 1
#endif

namespace {

#if defined(CORRFLOW_FLOAT32)

__device__ float to_float(float stored) { return stored; }
__device__ float from_float(float value) { return value; }

#elif defined(CORRFLOW_FLOAT16)

__device__ float to_float(Stored bits) {
    float value;
    asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(bits));
    return value;
}

__device__ Stored from_float(float value) {
    Stored bits;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(value));
    return bits;
}

#else

__device__ float to_float(Stored bits) { return __uint_as_float((unsigned)bits << 16); }

// Round to nearest even, in integers: the instruction does not exist before sm_80.
__device__ Stored from_float(float value) {
    const unsigned bits = __float_as_uint(value);
    if ((bits & 0x7fffffffu) > 0x7f800000u) return 0x7fff;
    return (Stored)((bits + 0x7fffu + (bits >> 16 & 1u)) >> 16);
}

#endif

#ifdef CORRFLOW_TENSOR_CORES

// The assignment of fragment elements to lanes is up to the hardware; these instructions do not depend on it.
#ifdef CORRFLOW_FLOAT16
constexpr int FRAGMENT = 8;
#else
constexpr int FRAGMENT = 4;
#endif

// Channels of 16 queries, loaded once for all groups of keys.
struct Queries {
    unsigned held[FRAGMENT];

    // queries [channel][query]
    __device__ explicit Queries(const Stored* queries) {
        const unsigned at = (unsigned)__cvta_generic_to_shared(queries);
#ifdef CORRFLOW_FLOAT16
        asm volatile("wmma.load.a.sync.aligned.col.m16n16k16.shared.f16 {%0, %1, %2, %3, %4, %5, %6, %7}, [%8], %9;"
                     : "=r"(held[0]), "=r"(held[1]), "=r"(held[2]), "=r"(held[3]), "=r"(held[4]), "=r"(held[5]),
                       "=r"(held[6]), "=r"(held[7])
                     : "r"(at), "n"(QUERY_PITCH)
                     : "memory");
#else
        asm volatile("wmma.load.a.sync.aligned.col.m16n16k16.shared.bf16 {%0, %1, %2, %3}, [%4], %5;"
                     : "=r"(held[0]), "=r"(held[1]), "=r"(held[2]), "=r"(held[3])
                     : "r"(at), "n"(QUERY_PITCH)
                     : "memory");
#endif
    }
};

struct Scores {
    float sums[8];

    __device__ void clear() {
#pragma unroll
        for (int i = 0; i < 8; ++i) sums[i] = 0.0f;
    }

    // keys [channel][key]
    __device__ void add(const Queries& queries, const Stored* keys) {
        const unsigned(&q)[FRAGMENT] = queries.held;
        const unsigned b = (unsigned)__cvta_generic_to_shared(keys);
        unsigned k[FRAGMENT];
#ifdef CORRFLOW_FLOAT16
        asm volatile("wmma.load.b.sync.aligned.row.m16n16k16.shared.f16 {%0, %1, %2, %3, %4, %5, %6, %7}, [%8], %9;"
                     : "=r"(k[0]), "=r"(k[1]), "=r"(k[2]), "=r"(k[3]), "=r"(k[4]), "=r"(k[5]), "=r"(k[6]), "=r"(k[7])
                     : "r"(b), "n"(KEY_PITCH)
                     : "memory");
        asm volatile(
            "wmma.mma.sync.aligned.col.row.m16n16k16.f32.f32 {%0, %1, %2, %3, %4, %5, %6, %7},"
            " {%8, %9, %10, %11, %12, %13, %14, %15}, {%16, %17, %18, %19, %20, %21, %22, %23},"
            " {%0, %1, %2, %3, %4, %5, %6, %7};"
            : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3]), "+f"(sums[4]), "+f"(sums[5]), "+f"(sums[6]),
              "+f"(sums[7])
            : "r"(q[0]), "r"(q[1]), "r"(q[2]), "r"(q[3]), "r"(q[4]), "r"(q[5]), "r"(q[6]), "r"(q[7]), "r"(k[0]),
              "r"(k[1]), "r"(k[2]), "r"(k[3]), "r"(k[4]), "r"(k[5]), "r"(k[6]), "r"(k[7]));
#else
        asm volatile("wmma.load.b.sync.aligned.row.m16n16k16.shared.bf16 {%0, %1, %2, %3}, [%4], %5;"
                     : "=r"(k[0]), "=r"(k[1]), "=r"(k[2]), "=r"(k[3])
                     : "r"(b), "n"(KEY_PITCH)
                     : "memory");
        asm volatile(
            "wmma.mma.sync.aligned.col.row.m16n16k16.f32.bf16.bf16.f32 {%0, %1, %2, %3, %4, %5, %6, %7},"
            " {%8, %9, %10, %11}, {%12, %13, %14, %15}, {%0, %1, %2, %3, %4, %5, %6, %7};"
            : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3]), "+f"(sums[4]), "+f"(sums[5]), "+f"(sums[6]),
              "+f"(sums[7])
            : "r"(q[0]), "r"(q[1]), "r"(q[2]), "r"(q[3]), "r"(k[0]), "r"(k[1]), "r"(k[2]), "r"(k[3]));
#endif
    }

    // scores [key][query]
    __device__ void store(float* scores) const {
        asm volatile("wmma.store.d.sync.aligned.col.m16n16k16.shared.f32 [%8], {%0, %1, %2, %3, %4, %5, %6, %7}, %9;"
                     :
                     : "f"(sums[0]), "f"(sums[1]), "f"(sums[2]), "f"(sums[3]), "f"(sums[4]), "f"(sums[5]),
                       "f"(sums[6]), "f"(sums[7]), "r"((unsigned)__cvta_generic_to_shared(scores)), "n"(SCORE_PITCH)
                     : "memory");
    }
};

#endif  // CORRFLOW_TENSOR_CORES

}  // namespace

#endif  // __CUDACC__

namespace {

// Neighbouring numbers that are loaded at once.
template <int COUNT>
struct alignas(COUNT * sizeof(Stored)) Run {
    Stored at[COUNT];
};

#ifndef CORRFLOW_TENSOR_CORES

// The same matrix product in single precision: each lane computes four queries with two keys. Queries stay in shared
// memory, because those of 16 channels are too many for registers.
struct Queries {
    const Stored* at;  // [channel][query]

    __device__ explicit Queries(const Stored* queries) : at(queries) {}
};

struct Scores {
    static constexpr int QUERIES = 4, KEYS = 2;
    float sums[QUERIES * KEYS];

    __device__ static int first_query() { return threadIdx.x % WARP / 8 * QUERIES; }
    __device__ static int first_key() { return threadIdx.x % 8 * KEYS; }

    __device__ void clear() {
#pragma unroll
        for (int i = 0; i < QUERIES * KEYS; ++i) sums[i] = 0.0f;
    }

    __device__ void add(const Queries& shared, const Stored* keys) {
        const Stored* const queries = shared.at + first_query();
        keys += first_key();
#pragma unroll
        for (int channel = 0; channel < SIDE; ++channel) {
            const auto own = *reinterpret_cast<const Run<QUERIES>*>(queries + channel * QUERY_PITCH);
            const auto other = *reinterpret_cast<const Run<KEYS>*>(keys + channel * KEY_PITCH);
#pragma unroll
            for (int i = 0; i < QUERIES; ++i)
#pragma unroll
                for (int j = 0; j < KEYS; ++j) sums[i * KEYS + j] += to_float(own.at[i]) * to_float(other.at[j]);
        }
    }

    __device__ void store(float* scores) const {
        scores += first_key() * SCORE_PITCH + first_query();
#pragma unroll
        for (int i = 0; i < QUERIES; ++i)
#pragma unroll
            for (int j = 0; j < KEYS; ++j) scores[j * SCORE_PITCH + i] = sums[i * KEYS + j];
    }
};

#endif

// Columns of a group of 16 keys that a lane folds: from, from + step, ... within low .. high.
struct Columns {
    int from, step, low, high;
};

// Row of `references`, see spec.py.
struct SearchWindow {
    int frame, window, dy, dx;
};

__device__ float weight(float score, float highest) { return exp2f((score - highest) * SCALE); }

// Divide the sum of values by the sum of weights; zero for a query without any position.
__device__ float normalised(float sum, float total) { return total > 0.0f ? sum / total : 0.0f; }

// Running state of a lane's query: the COUNT best scores so far, in descending order.
template <int COUNT>
struct State {
    float best[COUNT];
    unsigned places[COUNT];

    __device__ void clear() {
#pragma unroll
        for (int i = 0; i < COUNT; ++i) {
            best[i] = LOWEST;
            places[i] = NOWHERE;
        }
    }

    // scores [key] of this query, SCORE_PITCH apart; place: index of the group's first key, window * plane + position
    __device__ void fold(const float* scores, const float*, Columns columns, unsigned place) {
#pragma unroll
        for (int i = 0; i < VISITS; ++i) {
            const int column = columns.from + i * columns.step;
            if (column < columns.low || column > columns.high) continue;
            const float score = scores[column * SCORE_PITCH];
            if (score > best[COUNT - 1]) insert(score, place + column);
        }
    }

    // Insert a score behind equal scores that were found earlier.
    __device__ void insert(float score, unsigned place) {
#pragma unroll
        for (int i = COUNT - 1; i > 0; --i) {
            const bool moves = score > best[i - 1], lands = score > best[i];
            best[i] = moves ? best[i - 1] : lands ? score : best[i];
            places[i] = moves ? places[i - 1] : lands ? place : places[i];
        }
        if (score > best[0]) {
            best[0] = score;
            places[0] = place;
        }
    }

    // Merge the two lists of a query; each lane copies every second class. values, copied: of the block's first class.
    __device__ void finish(const Stored* values, const SearchWindow* references, Stored* copied, int classes,
                           size_t plane, bool writes) {
        const int half = threadIdx.x & 1;
        float sums[LANE_CLASSES], total = 0.0f, highest = LOWEST;
#pragma unroll
        for (int i = 0; i < LANE_CLASSES; ++i) sums[i] = 0.0f;
#pragma unroll 1
        for (int rank = 0; rank < COUNT; ++rank) {
            const float other = __shfl_xor_sync(ALL, best[0], 1);
            const unsigned elsewhere = __shfl_xor_sync(ALL, places[0], 1);
            const bool own = best[0] > other || (best[0] == other && places[0] < elsewhere);
            const float score = own ? best[0] : other;
            const unsigned place = own ? places[0] : elsewhere;
            if (own) {
#pragma unroll
                for (int i = 0; i + 1 < COUNT; ++i) {
                    best[i] = best[i + 1];
                    places[i] = places[i + 1];
                }
                best[COUNT - 1] = LOWEST;
                places[COUNT - 1] = NOWHERE;
            }
            if (rank == 0) highest = score;
            if (place == NOWHERE || !writes) continue;
            const float w = weight(score, highest);
            total += w;
            const unsigned index = place / (unsigned)plane;
            const int frame = references[index].frame;
            const Stored* value = values + frame * CLASSES * plane + (place - index * (unsigned)plane);
#pragma unroll
            for (int i = 0; i < LANE_CLASSES; ++i)
                if (2 * i + half < classes) sums[i] += w * to_float(value[(2 * i + half) * plane]);
        }
        if (!writes) return;
#pragma unroll
        for (int i = 0; i < LANE_CLASSES; ++i)
            if (2 * i + half < classes) copied[(2 * i + half) * plane] = from_float(normalised(sums[i], total));
    }
};

// Running state without top_k: the highest score so far, and the sums of weights and values relative to it.
template <>
struct State<0> {
    float highest, total, sums[OWN_CLASSES];

    __device__ void clear() {
        highest = LOWEST;
        total = 0.0f;
#pragma unroll
        for (int n = 0; n < OWN_CLASSES; ++n) sums[n] = 0.0f;
    }

    __device__ void rescale(float now) {
        const float factor = weight(highest, now);
        highest = now;
        total *= factor;
#pragma unroll
        for (int n = 0; n < OWN_CLASSES; ++n) sums[n] *= factor;
    }

    // values [class][CHUNK] from the group's first key on
    __device__ void fold(const float* scores, const float* values, Columns columns, unsigned) {
        float some[VISITS], peak = highest;
#pragma unroll
        for (int i = 0; i < VISITS; ++i) {
            const int column = columns.from + i * columns.step;
            const bool valid = column >= columns.low && column <= columns.high;
            some[i] = valid ? scores[column * SCORE_PITCH] : LOWEST;
            peak = fmaxf(peak, some[i]);
        }
        if (peak > highest) rescale(peak);
#pragma unroll
        for (int i = 0; i < VISITS; ++i) {
            const int column = columns.from + i * columns.step;
            if (column < columns.low || column > columns.high) continue;
            const float w = weight(some[i], highest);
            total += w;
#pragma unroll
            for (int n = 0; n < OWN_CLASSES; ++n) sums[n] += w * values[n * CHUNK + column];
        }
    }

    __device__ void finish(const Stored*, const SearchWindow*, Stored* copied, int classes, size_t plane, bool writes) {
        rescale(fmaxf(highest, __shfl_xor_sync(ALL, highest, 1)));
        total += __shfl_xor_sync(ALL, total, 1);
#pragma unroll
        for (int n = 0; n < OWN_CLASSES; ++n) {
            const float sum = sums[n] + __shfl_xor_sync(ALL, sums[n], 1);
            if (writes && n < classes && n % 2 == (int)(threadIdx.x & 1))
                copied[n * plane] = from_float(normalised(sum, total));
        }
    }
};

// Radius and dilation of a window; the last pair repeats for all further windows.
__device__ void window_of(int window, int& radius, int& dilation) {
    constexpr int radii[] = {CORRFLOW_RADII}, dilations[] = {CORRFLOW_DILATIONS};
    radius = radii[0];
    dilation = dilations[0];
#pragma unroll
    for (int i = 1; i < CORRFLOW_WINDOWS; ++i) {
        if (window < i) continue;
        radius = radii[i];
        dilation = dilations[i];
    }
}

__device__ int common_divisor(int a, int b) {
    while (b) {
        const int rest = a % b;
        a = b;
        b = rest;
    }
    return a;
}

// First row and row distance of a block's tile: SPREAD blocks share ROWS * SPREAD neighbouring rows, the last blocks
// share the remaining rows.
struct Rows {
    int first, apart;

    __device__ Rows() {
        const int group = blockIdx.y / SPREAD * SPREAD;
        first = group * ROWS + (int)blockIdx.y - group;
        apart = min(SPREAD, (int)gridDim.y - group);
    }
};

// Position of a block in its walk through the keys, the same for all threads: channels from `first` on of the keys in
// `row`, from column `start` on, in search window `index`. Rows that no query searches are skipped.
struct Walk {
    int index, row, start, first;
    int frame, dy, dx, radius, dilation, reach, step, left, right, bottom;

    // Go to the first window from `index` on that has keys for the tile.
    __device__ void find(const SearchWindow* references, int num_windows, int num_frames, int height, int width) {
        const Rows rows;
        const int first_column = blockIdx.x * SIDE;
        for (; index < num_windows; ++index) {
            const SearchWindow reference = references[index];
            frame = reference.frame;
            if (frame < 0 || frame >= num_frames) continue;
            dy = reference.dy;
            dx = reference.dx;
            window_of(reference.window, radius, dilation);
            reach = radius * dilation;
            step = common_divisor(dilation, rows.apart);
            const int above = rows.first + dy - reach, before = first_column + dx - reach;
            row = above >= 0 ? above : (above % step + step) % step;
            bottom = min(rows.first + dy + (ROWS - 1) * rows.apart + 1 + reach, height);
            left = max(before, 0) / PAIR * PAIR;
            right = min(first_column + dx + SIDE + reach, width);
            start = left;
            first = 0;
            if (row < bottom && left < right) return;
        }
    }

    __device__ void advance(const SearchWindow* references, int num_windows, int num_frames, int height, int width) {
        first += SLICE;
        if (first < DEPTH) return;
        first = 0;
        start += CHUNK;
        if (start < right) return;
        start = left;
        row += step;
        if (row < bottom) return;
        ++index;
        find(references, num_windows, num_frames, height, width);
    }
};

// Keys of a walk position that one thread moves to shared memory.
struct Keys {
    // Pairs of a row of keys. If they divide the threads, a thread moves one column of pairs, and its next channel is
    // always STRIDE further: one pointer serves all its loads.
    static constexpr int ACROSS = CHUNK / PAIR, STRIDE = THREADS / ACROSS;
    static constexpr bool EVEN = THREADS % ACROSS == 0, WHOLE = SLICE * ACROSS % THREADS == 0;
    Pair held[HELD];
    // Without top_k, values are loaded with the keys; with top_k, values of the best are read at the end.
    static constexpr int VALUES = TOP_K ? 1 : (OWN_CLASSES * CHUNK + THREADS - 1) / THREADS;
    float values[VALUES];

    __device__ static int channel_of(int i) {
        return EVEN ? (int)threadIdx.x / ACROSS + i * STRIDE : ((int)threadIdx.x + i * THREADS) / ACROSS;
    }
    __device__ static int column_of(int i) {
        return (EVEN ? (int)threadIdx.x : (int)threadIdx.x + i * THREADS) % ACROSS * PAIR;
    }

    // paired: pairs are aligned, so each is one load
    __device__ void load(const Walk& at, const Stored* keys, const Stored* all_values, int classes, size_t plane,
                         int width, bool paired) {
        keys += ((size_t)at.frame * CHANNELS + at.first) * plane + (size_t)at.row * width + at.start;
        const Stored* source = keys + channel_of(0) * plane + column_of(0);
#pragma unroll
        for (int i = 0; i < HELD; ++i) {
            const int channel = channel_of(i), column = at.start + column_of(i);
            const bool inside = at.first + channel < CHANNELS && (WHOLE || channel < SLICE);
            if (!EVEN) source = keys + channel * plane + column_of(i);
            if (PAIR == 1 || paired) {
                held[i] = inside && column < at.right ? *reinterpret_cast<const Pair*>(source) : Pair(0);
            } else {
                const Stored low = inside && column < at.right ? source[0] : Stored(0);
                const Stored high = inside && column + 1 < at.right ? source[1] : Stored(0);
                held[i] = (unsigned)low | (unsigned)high << 16;
            }
            if (EVEN) source += STRIDE * plane;
        }
        if (TOP_K || at.first != 0) return;
        all_values += (size_t)at.frame * CLASSES * plane + (size_t)at.row * width + at.start;
#pragma unroll
        for (int i = 0; i < VALUES; ++i) {
            const int own = threadIdx.x + i * THREADS, n = own / CHUNK, column = own % CHUNK;
            values[i] = n < classes && at.start + column < at.right ? to_float(all_values[n * plane + column]) : 0.0f;
        }
    }

    __device__ void store(const Walk& at, Stored* shared_keys, float* shared_values) const {
#pragma unroll
        for (int i = 0; i < HELD; ++i) {
            if (!WHOLE && channel_of(i) >= SLICE) break;
            *reinterpret_cast<Pair*>(shared_keys + channel_of(i) * KEY_PITCH + column_of(i)) = held[i];
        }
        if (TOP_K || at.first != 0) return;
#pragma unroll
        for (int i = 0; i < VALUES; ++i)
            if (const int own = threadIdx.x + i * THREADS; own < OWN_CLASSES * CHUNK) shared_values[own] = values[i];
    }
};

}  // namespace

extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS)
    corrflow_local_soft_copy(const Stored* __restrict__ query, const Stored* __restrict__ keys,
                             const Stored* __restrict__ values, const SearchWindow* __restrict__ references,
                             int height, int width, int num_frames, int num_windows, Stored* __restrict__ copied) {
    __shared__ __align__(32) Stored shared_queries[DEPTH * QUERY_PITCH];
    __shared__ __align__(32) Stored shared_keys[SLICE * KEY_PITCH];
    __shared__ __align__(32) float shared_scores[ROWS * SIDE * SCORE_PITCH];
#if CORRFLOW_TOP_K == 0
    __shared__ __align__(32) float shared_values[OWN_CLASSES * CHUNK];
#else
    float* const shared_values = nullptr;
#endif

    const size_t plane = (size_t)height * width;
    const int batch = blockIdx.z / CLASS_BLOCKS, first_class = blockIdx.z % CLASS_BLOCKS * OWN_CLASSES;
    const int classes = min(OWN_CLASSES, CLASSES - first_class);
    query += batch * CHANNELS * plane;
    keys += (size_t)batch * num_frames * CHANNELS * plane;
    values += ((size_t)batch * num_frames * CLASSES + first_class) * plane;
    copied += ((size_t)batch * CLASSES + first_class) * plane;

    const Rows rows;
    const int first_column = blockIdx.x * SIDE;
    for (int i = threadIdx.x; i < DEPTH * ROWS * SIDE; i += THREADS) {
        const int channel = i / (ROWS * SIDE), at = i % (ROWS * SIDE);
        const int y = rows.first + at / SIDE * rows.apart, x = first_column + at % SIDE;
        const bool inside = channel < CHANNELS && y < height && x < width;
        shared_queries[channel * QUERY_PITCH + at] =
            inside ? query[channel * plane + (size_t)y * width + x] : Stored(0);
    }

    const int warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
    const int y = rows.first + warp * rows.apart, x = first_column + lane / 2, half = lane % 2;
    float* const scores = shared_scores + warp * SIDE * SCORE_PITCH;
    State<TOP_K> state;
    state.clear();

    const bool paired = width % PAIR == 0 && (size_t)keys % sizeof(Pair) == 0;
    Walk next;
    next.index = 0;
    next.find(references, num_windows, num_frames, height, width);
    Keys ahead;
    if (next.index < num_windows) ahead.load(next, keys, values, classes, plane, width, paired);
    Scores similarities[GROUPS];
    while (next.index < num_windows) {
        const Walk at = next;
        __syncthreads();  // all warps are done with the keys that are overwritten now
        ahead.store(at, shared_keys, shared_values);
        __syncthreads();  // the stored keys are visible to all warps
        // The next keys are loaded while the current ones are multiplied.
        next.advance(references, num_windows, num_frames, height, width);
        if (next.index < num_windows) ahead.load(next, keys, values, classes, plane, width, paired);
        // Centre of the window of this lane's query. All lanes of a warp take the same branch.
        const int centre_row = y + at.dy, centre_column = x + at.dx;
        if (y >= height || abs(at.row - centre_row) > at.reach || (at.row - centre_row) % at.dilation != 0) continue;
        if (at.first == 0) {
#pragma unroll
            for (int group = 0; group < GROUPS; ++group) similarities[group].clear();
        }
#pragma unroll 1
        for (int channel = 0; channel < SLICE && at.first + channel < DEPTH; channel += SIDE) {
            const Queries queries(shared_queries + (at.first + channel) * QUERY_PITCH + warp * SIDE);
#pragma unroll
            for (int group = 0; group < GROUPS; ++group)
                similarities[group].add(queries, shared_keys + channel * KEY_PITCH + group * SIDE);
        }
        if (at.first + SLICE < DEPTH) continue;
#pragma unroll
        for (int group = 0; group < GROUPS; ++group) {
            const int origin = at.start + group * SIDE;
            if (origin >= at.right) break;
            similarities[group].store(scores);
            __syncwarp();  // the scores are visible to the warp
            const int phase = ((centre_column - origin) % at.dilation + at.dilation) % at.dilation;
            const Columns columns = {phase + half * at.dilation, 2 * at.dilation, centre_column - at.reach - origin,
                                     min(min(centre_column + at.reach, width - 1) - origin, SIDE - 1)};
            const unsigned place = ((unsigned)at.index * height + at.row) * width + origin;
            state.fold(scores + lane / 2, shared_values + group * SIDE, columns, place);
            __syncwarp();  // all lanes are done with the scores
        }
    }
    const bool writes = y < height && x < width;
    state.finish(values, references, copied + (size_t)y * width + x, classes, plane, writes);
}
