// LocalSoftCopy (spec.py) on the GPU, in one pass: no score and no window is ever written to device memory.
//
// A block computes a tile of ROWS x 16 queries, one warp a row. SearchWindow by reference and row by row, it brings the
// keys that the tile sees into shared memory, 16 * GROUPS columns and SLICE channels at a time, by way of registers,
// where the next ones arrive while it works on these; each warp multiplies its 16 queries with them, 16 keys at a time,
// and folds the scores into what it knows of its queries: an online softmax with its sums, or the list of the TOP_K
// best. Two lanes share a query, each takes every other key column, and they meet at the end. Keys come in the order of
// the tie rule: reference, row, column. References are always named: a block begins where a window is moved to, and
// skips a reference that is left out.
//
// launch.py writes the definitions in front of this file. It includes no header, so that NVRTC needs no include path.
#ifndef CORRFLOW_CHANNELS
#error "launch.py writes the definitions that this file is compiled with"
#endif

namespace {

constexpr int CHANNELS = CORRFLOW_CHANNELS;
constexpr int CLASSES = CORRFLOW_CLASSES;
constexpr int OWN_CLASSES = CORRFLOW_OWN_CLASSES;  // that one block copies
constexpr int CLASS_BLOCKS = CORRFLOW_CLASS_BLOCKS;
constexpr int TOP_K = CORRFLOW_TOP_K;
constexpr float SCALE = CORRFLOW_SCALE;  // log2(e) / temperature, since the hardware's exponential is that of two
constexpr int ROWS = CORRFLOW_ROWS;
constexpr int GROUPS = CORRFLOW_GROUPS;
constexpr int SLICE = CORRFLOW_SLICE;
// Rows of a tile lie so far apart, but for the last ones of a frame. It divides the dilation that most windows have, so
// that all of a tile's queries want the same rows of keys.
constexpr int SPREAD = CORRFLOW_SPREAD;

#ifdef CORRFLOW_FLOAT32
using Stored = float;
#else
using Stored = unsigned short;
#endif

constexpr int SIDE = 16;  // of a matrix fragment: 16 queries against 16 keys, 16 channels at a time
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
// Key columns of a group that one of a query's two lanes looks at.
constexpr int STEP = 2 * CORRFLOW_SMALLEST_DILATION;
constexpr int VISITS = (SIDE + STEP - 1) / STEP;
// Warps of a multiprocessor that registers are shared out for, where so many fit without spills, and blocks that have
// them. To leave the number open makes newer compilers aim for more, and spill. Up to sm_80 they need some registers more.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ <= 800
constexpr int WARPS = ROWS;
#else
constexpr int WARPS = TOP_K <= 10 && OWN_CLASSES <= 16 ? (TOP_K ? 12 : 16) : ROWS;
#endif
constexpr int BLOCKS = (WARPS + ROWS - 1) / ROWS;
constexpr float LOWEST = -3.402823466e38f;
constexpr unsigned NOWHERE = 0xffffffffu;
constexpr int PAIR = 4 / sizeof(Stored);  // neighbouring keys that a thread brings at once
constexpr int HELD = (SLICE * CHUNK / PAIR + THREADS - 1) / THREADS;  // such pairs of a slice that are a thread's

}  // namespace

#ifndef __CUDACC__
#include "cuda_on_cpu.h"  // the tests run this source on the CPU: threads, barriers and what stands below
#else

#if defined(CORRFLOW_FLOAT16) || (defined(CORRFLOW_BFLOAT16) && __CUDA_ARCH__ >= 800)
#define CORRFLOW_TENSOR_CORES 1
#endif

namespace {

#if defined(CORRFLOW_FLOAT32)

__device__ float number(float stored) { return stored; }
__device__ float storage(float value) { return value; }

#elif defined(CORRFLOW_FLOAT16)

__device__ float number(Stored bits) {
    float value;
    asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(bits));
    return value;
}

__device__ Stored storage(float value) {
    Stored bits;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(value));
    return bits;
}

#else

__device__ float number(Stored bits) { return __uint_as_float((unsigned)bits << 16); }

// Rounds to nearest even; in integers because the instruction is not there before sm_80.
__device__ Stored storage(float value) {
    const unsigned bits = __float_as_uint(value);
    if ((bits & 0x7fffffffu) > 0x7f800000u) return 0x7fff;
    return (Stored)((bits + 0x7fffu + (bits >> 16 & 1u)) >> 16);
}

#endif

#ifdef CORRFLOW_TENSOR_CORES

// Which lane holds which element of a fragment is the hardware's affair; these instructions never say.
struct Scores {
    float sums[8];

    __device__ void clear() {
#pragma unroll
        for (int i = 0; i < 8; ++i) sums[i] = 0.0f;
    }

    // queries [channel][query], keys [channel][key]
    __device__ void add(const Stored* queries, const Stored* keys) {
        const unsigned a = (unsigned)__cvta_generic_to_shared(queries), b = (unsigned)__cvta_generic_to_shared(keys);
#ifdef CORRFLOW_FLOAT16
        unsigned q[8], k[8];
        asm volatile("wmma.load.a.sync.aligned.col.m16n16k16.shared.f16 {%0, %1, %2, %3, %4, %5, %6, %7}, [%8], %9;"
                     : "=r"(q[0]), "=r"(q[1]), "=r"(q[2]), "=r"(q[3]), "=r"(q[4]), "=r"(q[5]), "=r"(q[6]), "=r"(q[7])
                     : "r"(a), "n"(QUERY_PITCH)
                     : "memory");
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
        unsigned q[4], k[4];
        asm volatile("wmma.load.a.sync.aligned.col.m16n16k16.shared.bf16 {%0, %1, %2, %3}, [%4], %5;"
                     : "=r"(q[0]), "=r"(q[1]), "=r"(q[2]), "=r"(q[3])
                     : "r"(a), "n"(QUERY_PITCH)
                     : "memory");
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

// Neighbouring numbers in one load.
template <int COUNT>
struct alignas(COUNT * sizeof(Stored)) Run {
    Stored at[COUNT];
};

#ifndef CORRFLOW_TENSOR_CORES

// The same product in single precision: a lane has four queries and two keys of the sixteen.
struct Scores {
    static constexpr int QUERIES = 4, KEYS = 2;
    float sums[QUERIES * KEYS];

    __device__ static int first_query() { return threadIdx.x % WARP / 8 * QUERIES; }
    __device__ static int first_key() { return threadIdx.x % 8 * KEYS; }

    __device__ void clear() {
#pragma unroll
        for (int i = 0; i < QUERIES * KEYS; ++i) sums[i] = 0.0f;
    }

    __device__ void add(const Stored* queries, const Stored* keys) {
        queries += first_query();
        keys += first_key();
#pragma unroll
        for (int channel = 0; channel < SIDE; ++channel) {
            const auto own = *reinterpret_cast<const Run<QUERIES>*>(queries + channel * QUERY_PITCH);
            const auto other = *reinterpret_cast<const Run<KEYS>*>(keys + channel * KEY_PITCH);
#pragma unroll
            for (int i = 0; i < QUERIES; ++i)
#pragma unroll
                for (int j = 0; j < KEYS; ++j) sums[i * KEYS + j] += number(own.at[i]) * number(other.at[j]);
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

// The columns of a group of 16 keys that a lane folds: from, from + step, ... where they lie within low .. high.
struct Columns {
    int from, step, low, high;
};

// A row of spec.py's `references`.
struct SearchWindow {
    int picture, window, down, right;
};

__device__ float weight(float score, float highest) { return exp2f((score - highest) * SCALE); }

// The sum of values over that of their weights; zero for a query that no position was left for.
__device__ float shared_out(float sum, float total) { return total > 0.0f ? sum / total : 0.0f; }

// What a lane knows of its query: the KEPT best of the scores it has seen, in descending order.
template <int KEPT>
struct State {
    float best[KEPT];
    unsigned places[KEPT];

    __device__ void clear() {
#pragma unroll
        for (int i = 0; i < KEPT; ++i) {
            best[i] = LOWEST;
            places[i] = NOWHERE;
        }
    }

    // scores [key] of this query, SCORE_PITCH apart; place: of the group's first key among all references' positions
    __device__ void fold(const float* scores, const float*, Columns columns, unsigned place) {
#pragma unroll
        for (int i = 0; i < VISITS; ++i) {
            const int column = columns.from + i * columns.step;
            if (column < columns.low || column > columns.high) continue;
            const float score = scores[column * SCORE_PITCH];
            if (score > best[KEPT - 1]) insert(score, place + column);
        }
    }

    // An equal score that was found earlier stays in front.
    __device__ void insert(float score, unsigned place) {
#pragma unroll
        for (int i = KEPT - 1; i > 0; --i) {
            const bool moves = score > best[i - 1], lands = score > best[i];
            best[i] = moves ? best[i - 1] : lands ? score : best[i];
            places[i] = moves ? places[i - 1] : lands ? place : places[i];
        }
        if (score > best[0]) {
            best[0] = score;
            places[0] = place;
        }
    }

    // Merge the two lists of a query; each lane copies every other class. values, copied: of this block's first class.
    __device__ void finish(const Stored* values, const SearchWindow* names, Stored* copied, int classes, size_t plane,
                           bool writes) {
        const int half = threadIdx.x & 1;
        float sums[LANE_CLASSES], total = 0.0f, highest = LOWEST;
#pragma unroll
        for (int i = 0; i < LANE_CLASSES; ++i) sums[i] = 0.0f;
#pragma unroll 1
        for (int rank = 0; rank < KEPT; ++rank) {
            const float other = __shfl_xor_sync(ALL, best[0], 1);
            const unsigned elsewhere = __shfl_xor_sync(ALL, places[0], 1);
            const bool own = best[0] > other || (best[0] == other && places[0] < elsewhere);
            const float score = own ? best[0] : other;
            const unsigned place = own ? places[0] : elsewhere;
            if (own) {
#pragma unroll
                for (int i = 0; i + 1 < KEPT; ++i) {
                    best[i] = best[i + 1];
                    places[i] = places[i + 1];
                }
                best[KEPT - 1] = LOWEST;
                places[KEPT - 1] = NOWHERE;
            }
            if (rank == 0) highest = score;
            if (place == NOWHERE || !writes) continue;
            const float share = weight(score, highest);
            total += share;
            const unsigned reference = place / (unsigned)plane;
            const int picture = names[reference].picture;
            const Stored* value = values + picture * CLASSES * plane + (place - reference * (unsigned)plane);
#pragma unroll
            for (int i = 0; i < LANE_CLASSES; ++i)
                if (2 * i + half < classes) sums[i] += share * number(value[(2 * i + half) * plane]);
        }
        if (!writes) return;
#pragma unroll
        for (int i = 0; i < LANE_CLASSES; ++i)
            if (2 * i + half < classes) copied[(2 * i + half) * plane] = storage(shared_out(sums[i], total));
    }
};

// The same where every score counts: the highest so far, the sum of the weights relative to it, and of the values.
template <>
struct State<0> {
    float highest, total, sums[OWN_CLASSES];

    __device__ void clear() {
        highest = LOWEST;
        total = 0.0f;
#pragma unroll
        for (int n = 0; n < OWN_CLASSES; ++n) sums[n] = 0.0f;
    }

    __device__ void shrink(float now) {
        const float factor = weight(highest, now);
        highest = now;
        total *= factor;
#pragma unroll
        for (int n = 0; n < OWN_CLASSES; ++n) sums[n] *= factor;
    }

    // values [class][CHUNK], from the group's first key on
    __device__ void fold(const float* scores, const float* values, Columns columns, unsigned) {
        float some[VISITS], peak = highest;
#pragma unroll
        for (int i = 0; i < VISITS; ++i) {
            const int column = columns.from + i * columns.step;
            const bool counts = column >= columns.low && column <= columns.high;
            some[i] = counts ? scores[column * SCORE_PITCH] : LOWEST;
            peak = fmaxf(peak, some[i]);
        }
        if (peak > highest) shrink(peak);
#pragma unroll
        for (int i = 0; i < VISITS; ++i) {
            const int column = columns.from + i * columns.step;
            if (column < columns.low || column > columns.high) continue;
            const float share = weight(some[i], highest);
            total += share;
#pragma unroll
            for (int n = 0; n < OWN_CLASSES; ++n) sums[n] += share * values[n * CHUNK + column];
        }
    }

    __device__ void finish(const Stored*, const SearchWindow*, Stored* copied, int classes, size_t plane, bool writes) {
        shrink(fmaxf(highest, __shfl_xor_sync(ALL, highest, 1)));
        total += __shfl_xor_sync(ALL, total, 1);
#pragma unroll
        for (int n = 0; n < OWN_CLASSES; ++n) {
            const float sum = sums[n] + __shfl_xor_sync(ALL, sums[n], 1);
            if (writes && n < classes && n % 2 == (int)(threadIdx.x & 1))
                copied[n * plane] = storage(shared_out(sum, total));
        }
    }
};

// Radius and dilation of a window; the last one is that of all further windows.
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

// First row of a block's tile and how far apart its rows are: SPREAD blocks share ROWS * SPREAD neighbouring rows, and the
// last blocks what is left.
struct Rows {
    int first, apart;

    __device__ Rows() {
        const int group = blockIdx.y / SPREAD * SPREAD;
        first = group * ROWS + (int)blockIdx.y - group;
        apart = min(SPREAD, (int)gridDim.y - group);
    }
};

// Where a block is on its way through the keys, the same for all its threads: at `first` and the next channels of the
// keys in `row` from column `start` on, of the reference `index`. Between two of its rows lie those no query wants.
struct Walk {
    int index, row, start, first;
    int picture, down, side, radius, dilation, reach, step, left, right, bottom;

    // Go to the first reference from `index` on that shows the tile anything.
    __device__ void find(const SearchWindow* names, int references, int pictures, int height, int width) {
        const Rows rows;
        const int first_column = blockIdx.x * SIDE;
        for (; index < references; ++index) {
            const SearchWindow reference = names[index];
            picture = reference.picture;
            if (picture < 0 || picture >= pictures) continue;
            down = reference.down;
            side = reference.right;
            window_of(reference.window, radius, dilation);
            reach = radius * dilation;
            step = common_divisor(dilation, rows.apart);
            const int above = rows.first + down - reach, before = first_column + side - reach;
            row = above >= 0 ? above : (above % step + step) % step;
            bottom = min(rows.first + down + (ROWS - 1) * rows.apart + 1 + reach, height);
            left = max(before, 0) / PAIR * PAIR;
            right = min(first_column + side + SIDE + reach, width);
            start = left;
            first = 0;
            if (row < bottom && left < right) return;
        }
    }

    __device__ void advance(const SearchWindow* names, int references, int pictures, int height, int width) {
        first += SLICE;
        if (first < DEPTH) return;
        first = 0;
        start += CHUNK;
        if (start < right) return;
        start = left;
        row += step;
        if (row < bottom) return;
        ++index;
        find(names, references, pictures, height, width);
    }
};

// A thread's share of the keys that a walk is at, on their way into shared memory.
struct Keys {
    Run<PAIR> held[HELD];
    // Where every score counts, its values beside it; of the best, their values are looked up at the end.
    static constexpr int VALUES = TOP_K ? 1 : (OWN_CLASSES * CHUNK + THREADS - 1) / THREADS;
    float values[VALUES];

    // paired: a pair can be read at once, since rows begin and end with whole ones
    __device__ void load(const Walk& at, const Stored* keys, const Stored* all_values, int classes, size_t plane,
                         int width, bool paired) {
        const Stored* const row = keys + (size_t)at.picture * CHANNELS * plane + (size_t)at.row * width + at.start;
#pragma unroll
        for (int i = 0; i < HELD; ++i) {
            const int own = threadIdx.x + i * THREADS;
            const int channel = at.first + own / (CHUNK / PAIR), column = own % (CHUNK / PAIR) * PAIR;
            const bool inside = channel < CHANNELS && own < SLICE * CHUNK / PAIR;
            const Stored* const source = row + channel * plane + column;
            if (paired) {
                held[i] = inside && at.start + column < at.right ? *reinterpret_cast<const Run<PAIR>*>(source) : Run<PAIR>{};
            } else {
#pragma unroll
                for (int j = 0; j < PAIR; ++j)
                    held[i].at[j] = inside && at.start + column + j < at.right ? source[j] : Stored(0);
            }
        }
        if (TOP_K || at.first != 0) return;
        const Stored* const beside = all_values + (size_t)at.picture * CLASSES * plane + (size_t)at.row * width + at.start;
#pragma unroll
        for (int i = 0; i < VALUES; ++i) {
            const int own = threadIdx.x + i * THREADS, n = own / CHUNK, column = own % CHUNK;
            values[i] = n < classes && at.start + column < at.right ? number(beside[n * plane + column]) : 0.0f;
        }
    }

    __device__ void store(const Walk& at, Stored* keys_here, float* values_here) const {
#pragma unroll
        for (int i = 0; i < HELD; ++i) {
            const int own = threadIdx.x + i * THREADS;
            if (own >= SLICE * CHUNK / PAIR) break;
            const int channel = own / (CHUNK / PAIR), column = own % (CHUNK / PAIR) * PAIR;
            *reinterpret_cast<Run<PAIR>*>(keys_here + channel * KEY_PITCH + column) = held[i];
        }
        if (TOP_K || at.first != 0) return;
#pragma unroll
        for (int i = 0; i < VALUES; ++i)
            if (const int own = threadIdx.x + i * THREADS; own < OWN_CLASSES * CHUNK) values_here[own] = values[i];
    }
};

}  // namespace

extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS)
    corrflow_local_soft_copy(const Stored* __restrict__ query, const Stored* __restrict__ keys,
                             const Stored* __restrict__ values, const SearchWindow* __restrict__ names, int height,
                             int width, int pictures, int references, Stored* __restrict__ copied) {
    __shared__ __align__(32) Stored queries_here[DEPTH * QUERY_PITCH];
    __shared__ __align__(32) Stored keys_here[SLICE * KEY_PITCH];
    __shared__ __align__(32) float scores_here[ROWS * SIDE * SCORE_PITCH];
#if CORRFLOW_TOP_K == 0
    __shared__ __align__(32) float values_here[OWN_CLASSES * CHUNK];
#else
    float* const values_here = nullptr;
#endif

    const size_t plane = (size_t)height * width;
    const int batch = blockIdx.z / CLASS_BLOCKS, first_class = blockIdx.z % CLASS_BLOCKS * OWN_CLASSES;
    const int classes = min(OWN_CLASSES, CLASSES - first_class);
    query += batch * CHANNELS * plane;
    keys += (size_t)batch * pictures * CHANNELS * plane;
    values += ((size_t)batch * pictures * CLASSES + first_class) * plane;
    copied += ((size_t)batch * CLASSES + first_class) * plane;

    const Rows rows;
    const int first_column = blockIdx.x * SIDE;
    for (int i = threadIdx.x; i < DEPTH * ROWS * SIDE; i += THREADS) {
        const int channel = i / (ROWS * SIDE), at = i % (ROWS * SIDE);
        const int y = rows.first + at / SIDE * rows.apart, x = first_column + at % SIDE;
        const bool inside = channel < CHANNELS && y < height && x < width;
        queries_here[channel * QUERY_PITCH + at] = inside ? query[channel * plane + (size_t)y * width + x] : Stored(0);
    }

    const int warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
    const int y = rows.first + warp * rows.apart, x = first_column + lane / 2, half = lane % 2;
    float* const scores = scores_here + warp * SIDE * SCORE_PITCH;
    State<TOP_K> state;
    state.clear();

    const bool paired = width % PAIR == 0 && (size_t)keys % sizeof(Run<PAIR>) == 0;
    Walk next;
    next.index = 0;
    next.find(names, references, pictures, height, width);
    Keys ahead;
    if (next.index < references) ahead.load(next, keys, values, classes, plane, width, paired);
    Scores products[GROUPS];
    while (next.index < references) {
        const Walk at = next;
        __syncthreads();  // no warp still needs what is overwritten now
        ahead.store(at, keys_here, values_here);
        __syncthreads();  // what was stored is there for all
        // The next keys are on their way while these are multiplied.
        next.advance(names, references, pictures, height, width);
        if (next.index < references) ahead.load(next, keys, values, classes, plane, width, paired);
        // The middle of the window of this lane's query. Whether it reaches the row is the same for a warp.
        const int middle_row = y + at.down, middle_column = x + at.side;
        if (y >= height || abs(at.row - middle_row) > at.reach || (at.row - middle_row) % at.dilation != 0) continue;
        if (at.first == 0) {
#pragma unroll
            for (int group = 0; group < GROUPS; ++group) products[group].clear();
        }
#pragma unroll 1
        for (int channel = 0; channel < SLICE && at.first + channel < DEPTH; channel += SIDE)
#pragma unroll
            for (int group = 0; group < GROUPS; ++group)
                products[group].add(queries_here + (at.first + channel) * QUERY_PITCH + warp * SIDE,
                                    keys_here + channel * KEY_PITCH + group * SIDE);
        if (at.first + SLICE < DEPTH) continue;
#pragma unroll
        for (int group = 0; group < GROUPS; ++group) {
            const int origin = at.start + group * SIDE;
            if (origin >= at.right) break;
            products[group].store(scores);
            __syncwarp();  // the scores are there for the warp
            const int phase = ((middle_column - origin) % at.dilation + at.dilation) % at.dilation;
            const Columns columns = {phase + half * at.dilation, 2 * at.dilation, middle_column - at.reach - origin,
                                     min(min(middle_column + at.reach, width - 1) - origin, SIDE - 1)};
            const unsigned place = ((unsigned)at.index * height + at.row) * width + origin;
            state.fold(scores + lane / 2, values_here + group * SIDE, columns, place);
            __syncwarp();  // no lane still needs them
        }
    }
    const bool writes = y < height && x < width;
    state.finish(values, names, copied + (size_t)y * width + x, classes, plane, writes);
}
