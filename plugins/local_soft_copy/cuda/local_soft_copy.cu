// LocalSoftCopy (spec.py), a top-k local cross-attention, in one pass: no score or window is written to device memory.
//
// A block computes a tile of ROWS x 16 queries, one warp per row. It loads the keys within reach of the tile, one
// search window and one row of keys after another: 16 * GROUPS positions and SLICE channels at a time, through registers
// to shared memory. The next keys are loaded while the current ones are multiplied. Each warp computes the scores of
// its 16 queries with 16 keys at a time. Scores stay in registers: a lane has 2 queries with 4 of the keys, and folds
// them into the state of each query, an online softmax with its sums or the list of the TOP_K best. Four lanes share a
// query and merge at the end. Keys come in the order of the tie rule: window, row, column. The kernel always takes
// `references` and skips unused rows.
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
// Distance of the rows and of the columns of a tile, except for the last of a frame. SPREAD divides the most common
// dilation, so all queries of a tile search the same rows and columns of keys, and no other key is multiplied.
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
constexpr int SHARERS = 4;                    // lanes that share a query
constexpr int QUERIES = 2, KEYS = 4;          // of a group of 16 by 16 that a lane has the scores of
constexpr int LANE_CLASSES = (OWN_CLASSES + SHARERS - 1) / SHARERS;
// Warps per multiprocessor that the registers are divided among without spills, and their blocks. Without this number,
// newer compilers aim for more warps and spill. Lists or sums of two queries are in registers.
constexpr int MOST_WARPS = sizeof(Stored) == 2 ? 16 : 12;
constexpr int WARPS_OF_LIST = TOP_K <= 5 ? MOST_WARPS : TOP_K <= 10 ? MOST_WARPS - 4 : ROWS;
constexpr int WARPS_OF_SUMS = OWN_CLASSES <= 8 ? 12 : 8;
constexpr int WARPS = OWN_CLASSES > 16 ? ROWS : TOP_K ? WARPS_OF_LIST : WARPS_OF_SUMS;
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

// Load four matrices of 8 x 8 numbers of 16 bits, transposed; a lane gives the address of one of their 32 rows.
__device__ void load_matrices(unsigned (&held)[4], const Stored* row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(held[0]), "=r"(held[1]), "=r"(held[2]), "=r"(held[3])
                 : "r"((unsigned)__cvta_generic_to_shared(row))
                 : "memory");
}

// 16 channels of 16 queries, loaded once for all groups of keys.
struct Queries {
    unsigned held[4];

    // queries [channel][query]
    __device__ explicit Queries(const Stored* queries) {
        const int matrix = threadIdx.x % WARP / 8, row = threadIdx.x % 8;
        load_matrices(held, queries + (matrix / 2 * 8 + row) * QUERY_PITCH + matrix % 2 * 8);
    }
};

// Scores of 16 queries with 16 keys: two products of 16 x 8, whose elements the instruction assigns to lanes.
struct Scores {
    float sums[2][4];

    __device__ static int query_of(int query) { return threadIdx.x % WARP / 4 + query * 8; }
    __device__ static int key_of(int key) { return key / 2 * 8 + threadIdx.x % 4 * 2 + key % 2; }
    __device__ float at(int query, int key) const { return sums[key / 2][query * 2 + key % 2]; }

    __device__ void clear() {
#pragma unroll
        for (int i = 0; i < 8; ++i) sums[i / 4][i % 4] = 0.0f;
    }

    // keys [channel][key]
    __device__ void add(const Queries& queries, const Stored* keys) {
        const int matrix = threadIdx.x % WARP / 8, row = threadIdx.x % 8;
        unsigned held[4];
        load_matrices(held, keys + (matrix % 2 * 8 + row) * KEY_PITCH + matrix / 2 * 8);
#pragma unroll
        for (int side = 0; side < 2; ++side)
            multiply(sums[side], queries.held, held[2 * side], held[2 * side + 1]);
    }

    // Add 16 queries by 8 keys by 16 channels.
    __device__ static void multiply(float (&sum)[4], const unsigned (&q)[4], unsigned low, unsigned high) {
#if defined(CORRFLOW_BFLOAT16)
        asm volatile(
            "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9},"
            " {%0, %1, %2, %3};"
            : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
            : "r"(q[0]), "r"(q[1]), "r"(q[2]), "r"(q[3]), "r"(low), "r"(high));
#elif __CUDA_ARCH__ >= 800
        asm volatile(
            "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9},"
            " {%0, %1, %2, %3};"
            : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
            : "r"(q[0]), "r"(q[1]), "r"(q[2]), "r"(q[3]), "r"(low), "r"(high));
#else
        asm volatile(
            "mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5}, {%6}, {%0, %1, %2, %3};"
            : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
            : "r"(q[0]), "r"(q[1]), "r"(low));
        asm volatile(
            "mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5}, {%6}, {%0, %1, %2, %3};"
            : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
            : "r"(q[2]), "r"(q[3]), "r"(high));
#endif
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

// The same matrix product in single precision: each lane computes two queries with four keys. Queries stay in shared
// memory, because those of 16 channels are too many for registers.
struct Queries {
    const Stored* at;  // [channel][query]

    __device__ explicit Queries(const Stored* queries) : at(queries) {}
};

struct Scores {
    float sums[QUERIES * KEYS];

    __device__ static int query_of(int query) { return threadIdx.x % WARP / 4 * QUERIES + query; }
    __device__ static int key_of(int key) { return threadIdx.x % 4 * KEYS + key; }
    __device__ float at(int query, int key) const { return sums[query * KEYS + key]; }

    __device__ void clear() {
#pragma unroll
        for (int i = 0; i < QUERIES * KEYS; ++i) sums[i] = 0.0f;
    }

    // keys [channel][key]
    __device__ void add(const Queries& shared, const Stored* keys) {
        const Stored* const queries = shared.at + query_of(0);
        keys += key_of(0);
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
};

#endif

// Row of `references`, see spec.py.
struct SearchWindow {
    int frame, window, dy, dx;
};

__device__ float weight(float score, float highest) { return exp2f((score - highest) * SCALE); }

// Divide the sum of values by the sum of weights; zero for a query without any position.
__device__ float normalised(float sum, float total) { return total > 0.0f ? sum / total : 0.0f; }

// Bits of the keys that a query searches, among those that a lane has the scores of: bit group * KEYS + key.
using Mask = unsigned;

// A lane's share of a query's running state: the COUNT best scores so far, in descending order.
template <int COUNT>
struct State {
    float best[COUNT];
    unsigned places[COUNT];
    float threshold;  // lower scores are not among the COUNT best of the four lanes

    __device__ void clear() {
        threshold = LOWEST;
#pragma unroll
        for (int i = 0; i < COUNT; ++i) {
            best[i] = LOWEST;
            places[i] = NOWHERE;
        }
    }

    // Share the highest of the lanes' last scores. All of a lane's list was found earlier than the scores to come.
    __device__ void share() {
        threshold = best[COUNT - 1];
        threshold = fmaxf(threshold, __shfl_xor_sync(ALL, threshold, 1));
        threshold = fmaxf(threshold, __shfl_xor_sync(ALL, threshold, 2));
    }

    // place: of the chunk's first key, window * plane + position; apart: distance of neighbouring keys
    __device__ static void fold(State (&states)[QUERIES], const Scores (&similarities)[GROUPS],
                                const Mask (&masks)[QUERIES], const float*, unsigned place, int apart) {
#pragma unroll
        for (int query = 0; query < QUERIES; ++query) states[query].share();
#pragma unroll
        for (int group = 0; group < GROUPS; ++group)
#pragma unroll
            for (int key = 0; key < KEYS; ++key)
#pragma unroll
                for (int query = 0; query < QUERIES; ++query) {
                    const float score = similarities[group].at(query, key);
                    if ((masks[query] >> (group * KEYS + key) & 1u) && score > states[query].threshold)
                        states[query].insert(score, place + (group * SIDE + Scores::key_of(key)) * apart);
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
        threshold = fmaxf(threshold, best[COUNT - 1]);
    }

    // Merge the four lists of a query; each lane copies every fourth class. values, copied: of the block's first class.
    __device__ void finish(const Stored* values, const SearchWindow* references, Stored* copied, int classes,
                           size_t plane, bool writes) {
        const int sharer = threadIdx.x % SHARERS;
        float sums[LANE_CLASSES], total = 0.0f, highest = LOWEST;
#pragma unroll
        for (int i = 0; i < LANE_CLASSES; ++i) sums[i] = 0.0f;
#pragma unroll 1
        for (int rank = 0; rank < COUNT; ++rank) {
            float score = best[0];
            unsigned place = places[0];
#pragma unroll
            for (int other = 1; other < SHARERS; other *= 2) {
                const float elsewhere = __shfl_xor_sync(ALL, score, other);
                const unsigned its_place = __shfl_xor_sync(ALL, place, other);
                if (elsewhere > score || (elsewhere == score && its_place < place)) {
                    score = elsewhere;
                    place = its_place;
                }
            }
            if (place == places[0]) {
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
                if (SHARERS * i + sharer < classes)
                    sums[i] += w * to_float(value[(SHARERS * i + sharer) * plane]);
        }
        if (!writes) return;
#pragma unroll
        for (int i = 0; i < LANE_CLASSES; ++i)
            if (SHARERS * i + sharer < classes)
                copied[(SHARERS * i + sharer) * plane] = from_float(normalised(sums[i], total));
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

    // values [class][CHUNK] from the chunk's first key on
    __device__ static void fold(State (&states)[QUERIES], const Scores (&similarities)[GROUPS],
                                const Mask (&masks)[QUERIES], const float* values, unsigned, int) {
#pragma unroll
        for (int query = 0; query < QUERIES; ++query) {
            float peak = states[query].highest;
#pragma unroll
            for (int i = 0; i < GROUPS * KEYS; ++i)
                if (masks[query] >> i & 1u) peak = fmaxf(peak, similarities[i / KEYS].at(query, i % KEYS));
            if (peak > states[query].highest) states[query].rescale(peak);
        }
#pragma unroll
        for (int i = 0; i < GROUPS * KEYS; ++i) {
            float weights[QUERIES];
#pragma unroll
            for (int query = 0; query < QUERIES; ++query) {
                const bool valid = masks[query] >> i & 1u;
                weights[query] = valid ? weight(similarities[i / KEYS].at(query, i % KEYS), states[query].highest) : 0.0f;
                states[query].total += weights[query];
            }
            const float* const value = values + i / KEYS * SIDE + Scores::key_of(i % KEYS);
#pragma unroll
            for (int n = 0; n < OWN_CLASSES; ++n)
#pragma unroll
                for (int query = 0; query < QUERIES; ++query)
                    states[query].sums[n] += weights[query] * value[n * CHUNK];
        }
    }

    __device__ void finish(const Stored*, const SearchWindow*, Stored* copied, int classes, size_t plane, bool writes) {
        float peak = highest;
#pragma unroll
        for (int other = 1; other < SHARERS; other *= 2) peak = fmaxf(peak, __shfl_xor_sync(ALL, peak, other));
        rescale(peak);
        total = over_lanes(total);
#pragma unroll
        for (int n = 0; n < OWN_CLASSES; ++n) {
            const float sum = over_lanes(sums[n]);
            if (writes && n < classes && n % SHARERS == (int)threadIdx.x % SHARERS)
                copied[n * plane] = from_float(normalised(sum, total));
        }
    }

    // Add up over the four lanes of a query.
    __device__ static float over_lanes(float value) {
#pragma unroll
        for (int other = 1; other < SHARERS; other *= 2) value += __shfl_xor_sync(ALL, value, other);
        return value;
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

// First row and row distance of a block's tile, and the same for columns: SPREAD blocks share `size` * SPREAD
// neighbouring rows, the last blocks share the remaining rows.
struct Spaced {
    int first, apart;

    __device__ Spaced(int block, int blocks, int size) {
        const int group = block / SPREAD * SPREAD;
        first = group * size + block - group;
        apart = min(SPREAD, blocks - group);
    }
};

__device__ Spaced tile_rows() { return Spaced(blockIdx.y, gridDim.y, ROWS); }
__device__ Spaced tile_columns() { return Spaced(blockIdx.x, gridDim.x, SIDE); }

// Position of a block in its walk through the keys, the same for all threads: channels from `first` on of the keys in
// `row`, from column `start` on and `apart` columns from each other, in search window `index`. Rows and columns that no
// query searches are skipped. fresh: the columns differ from those of the last position.
struct Walk {
    int index, row, start, first;
    int frame, dy, dx, radius, dilation, reach, step, left, right, bottom, apart;
    bool fresh;

    // Go to the first window from `index` on that has keys for the tile.
    __device__ void find(const SearchWindow* references, int num_windows, int num_frames, int height, int width) {
        const Spaced rows = tile_rows(), columns = tile_columns();
        fresh = true;
        for (; index < num_windows; ++index) {
            const SearchWindow reference = references[index];
            frame = reference.frame;
            if (frame < 0 || frame >= num_frames) continue;
            dy = reference.dy;
            dx = reference.dx;
            window_of(reference.window, radius, dilation);
            reach = radius * dilation;
            step = common_divisor(dilation, rows.apart);
            apart = common_divisor(dilation, columns.apart);
            row = first_from(rows.first + dy - reach, step);
            bottom = min(rows.first + dy + (ROWS - 1) * rows.apart + 1 + reach, height);
            left = first_from(columns.first + dx - reach, apart);
            if (apart == 1) left = left / PAIR * PAIR;
            right = min(columns.first + dx + (SIDE - 1) * columns.apart + 1 + reach, width);
            start = left;
            first = 0;
            if (row < bottom && left < right) return;
        }
    }

    // First position inside the frame, from `position` on in steps.
    __device__ static int first_from(int position, int step) {
        return position >= 0 ? position : (position % step + step) % step;
    }

    __device__ void advance(const SearchWindow* references, int num_windows, int num_frames, int height, int width) {
        fresh = false;
        first += SLICE;
        if (first < DEPTH) return;
        first = 0;
        start += CHUNK * apart;
        fresh = start < right || start - CHUNK * apart != left;
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
    // Pairs of a row of keys. If they divide the threads, a thread moves one pair of columns, and its next channel is
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
    __device__ static int position_of(int i) {
        return (EVEN ? (int)threadIdx.x : (int)threadIdx.x + i * THREADS) % ACROSS * PAIR;
    }

    // paired: pairs are aligned, so each is one load
    __device__ void load(const Walk& at, const Stored* keys, const Stored* all_values, int classes, size_t plane,
                         int width, bool paired) {
        keys += ((size_t)at.frame * CHANNELS + at.first) * plane + (size_t)at.row * width + at.start;
        const Stored* source = keys + channel_of(0) * plane + position_of(0) * at.apart;
#pragma unroll
        for (int i = 0; i < HELD; ++i) {
            const int channel = channel_of(i), column = at.start + position_of(i) * at.apart;
            const bool inside = at.first + channel < CHANNELS && (WHOLE || channel < SLICE);
            if (!EVEN) source = keys + channel * plane + position_of(i) * at.apart;
            if (PAIR == 1 || (paired && at.apart == 1)) {
                held[i] = inside && column < at.right ? *reinterpret_cast<const Pair*>(source) : Pair(0);
            } else {
                const Stored low = inside && column < at.right ? source[0] : Stored(0);
                const Stored high = inside && column + at.apart < at.right ? source[at.apart] : Stored(0);
                held[i] = (unsigned)low | (unsigned)high << 16;
            }
            if (EVEN) source += STRIDE * plane;
        }
        if (TOP_K || at.first != 0) return;
        all_values += (size_t)at.frame * CLASSES * plane + (size_t)at.row * width + at.start;
#pragma unroll
        for (int i = 0; i < VALUES; ++i) {
            const int own = threadIdx.x + i * THREADS, n = own / CHUNK, column = own % CHUNK * at.apart;
            values[i] = n < classes && at.start + column < at.right ? to_float(all_values[n * plane + column]) : 0.0f;
        }
    }

    __device__ void store(const Walk& at, Stored* shared_keys, float* shared_values) const {
#pragma unroll
        for (int i = 0; i < HELD; ++i) {
            if (!WHOLE && channel_of(i) >= SLICE) break;
            *reinterpret_cast<Pair*>(shared_keys + channel_of(i) * KEY_PITCH + position_of(i)) = held[i];
        }
        if (TOP_K || at.first != 0) return;
#pragma unroll
        for (int i = 0; i < VALUES; ++i)
            if (const int own = threadIdx.x + i * THREADS; own < OWN_CLASSES * CHUNK) shared_values[own] = values[i];
    }
};

// Return the keys of a chunk that a query searches, among those of this lane. centre: column of the window's centre
__device__ Mask searched(const Walk& at, int centre, int width) {
    const int low = centre - at.reach, high = min(centre + at.reach, width - 1);
    Mask mask = 0;
#pragma unroll
    for (int i = 0; i < GROUPS * KEYS; ++i) {
        const int column = at.start + (i / KEYS * SIDE + Scores::key_of(i % KEYS)) * at.apart;
        if (column >= low && column <= high) mask |= 1u << i;
    }
    if (at.apart == at.dilation) return mask;
    // Where a dilation is not that of the tile, some of its columns are between the query's.
#pragma unroll 1
    for (int i = 0; i < GROUPS * KEYS; ++i) {
        const int column = at.start + (i / KEYS * SIDE + Scores::key_of(i % KEYS)) * at.apart;
        if ((column - centre) % at.dilation != 0) mask &= ~(1u << i);
    }
    return mask;
}

}  // namespace

extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS)
    corrflow_local_soft_copy(const Stored* __restrict__ query, const Stored* __restrict__ keys,
                             const Stored* __restrict__ values, const SearchWindow* __restrict__ references,
                             int height, int width, int num_frames, int num_windows, Stored* __restrict__ copied) {
    __shared__ __align__(32) Stored shared_queries[DEPTH * QUERY_PITCH];
    __shared__ __align__(32) Stored shared_keys[SLICE * KEY_PITCH];
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

    const Spaced rows = tile_rows(), columns = tile_columns();
    for (int i = threadIdx.x; i < DEPTH * ROWS * SIDE; i += THREADS) {
        const int channel = i / (ROWS * SIDE), at = i % (ROWS * SIDE);
        const int y = rows.first + at / SIDE * rows.apart, x = columns.first + at % SIDE * columns.apart;
        const bool inside = channel < CHANNELS && y < height && x < width;
        shared_queries[channel * QUERY_PITCH + at] =
            inside ? query[channel * plane + (size_t)y * width + x] : Stored(0);
    }

    const int warp = threadIdx.x / WARP, y = rows.first + warp * rows.apart;
    State<TOP_K> states[QUERIES];
    Mask masks[QUERIES];
#pragma unroll
    for (int i = 0; i < QUERIES; ++i) states[i].clear();

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
        if (at.fresh) {
#pragma unroll
            for (int i = 0; i < QUERIES; ++i)
                masks[i] = searched(at, columns.first + Scores::query_of(i) * columns.apart + at.dx, width);
        }
        // All lanes of a warp take the same branch.
        const int centre_row = y + at.dy;
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
        const unsigned place = ((unsigned)at.index * height + at.row) * width + at.start;
        State<TOP_K>::fold(states, similarities, masks, shared_values, place, at.apart);
    }
#pragma unroll
    for (int i = 0; i < QUERIES; ++i) {
        const int x = columns.first + Scores::query_of(i) * columns.apart;
        const bool writes = y < height && x < width;
        states[i].finish(values, references, copied + (size_t)y * width + x, classes, plane, writes);
    }
}
