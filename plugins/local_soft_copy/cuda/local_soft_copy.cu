// LocalSoftCopy (spec.py) on the GPU, in one pass: no score and no window is ever written to device memory.
//
// A block computes a tile of ROWS x 16 queries, one warp a row. Reference by reference and row by row, it brings the
// keys that the tile sees into shared memory, 16 * GROUPS columns and SLICE channels at a time; each warp multiplies
// its 16 queries with them, 16 keys at a time, and folds the scores into what it knows of its queries: an online
// softmax with its sums, or the list of the TOP_K best. Two lanes share a query, each takes every other key column, and
// they meet at the end. Keys come in the order of the tie rule: reference, row, column. References are always named: a
// block begins where a window is moved to, and skips a reference that is left out.
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
// Blocks of a multiprocessor that registers are shared out for: two where that many fit without spills. To leave the
// number open makes newer compilers aim for more, and spill.
constexpr int BLOCKS = TOP_K <= 10 && OWN_CLASSES <= 16 ? 2 : 1;
constexpr float LOWEST = -3.402823466e38f;
constexpr unsigned NOWHERE = 0xffffffffu;

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

#ifndef CORRFLOW_TENSOR_CORES

// Neighbouring numbers of shared memory in one load.
template <int COUNT>
struct alignas(COUNT * sizeof(Stored)) Run {
    Stored at[COUNT];
};

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
struct Reference {
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
    __device__ void finish(const Stored* values, const Reference* names, Stored* copied, int classes, size_t plane,
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

    __device__ void finish(const Stored*, const Reference*, Stored* copied, int classes, size_t plane, bool writes) {
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

}  // namespace

extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS)
    corrflow_local_soft_copy(const Stored* __restrict__ query, const Stored* __restrict__ keys,
                             const Stored* __restrict__ values, const Reference* __restrict__ names, int height,
                             int width, int pictures, int references, Stored* __restrict__ copied) {
    __shared__ __align__(32) Stored queries_here[DEPTH * QUERY_PITCH];
    __shared__ __align__(32) Stored keys_here[SLICE * KEY_PITCH];
    __shared__ __align__(32) float scores_here[ROWS * SIDE * SCORE_PITCH];
#if CORRFLOW_TOP_K == 0
    __shared__ __align__(32) float values_here[OWN_CLASSES * CHUNK];
#else
    const float* const values_here = nullptr;
#endif

    const size_t plane = (size_t)height * width;
    const int batch = blockIdx.z / CLASS_BLOCKS, first_class = blockIdx.z % CLASS_BLOCKS * OWN_CLASSES;
    const int classes = min(OWN_CLASSES, CLASSES - first_class);
    query += batch * CHANNELS * plane;
    keys += (size_t)batch * pictures * CHANNELS * plane;
    values += ((size_t)batch * pictures * CLASSES + first_class) * plane;
    copied += ((size_t)batch * CLASSES + first_class) * plane;

    const int first_row = blockIdx.y * ROWS, first_column = blockIdx.x * SIDE;
    for (int i = threadIdx.x; i < DEPTH * ROWS * SIDE; i += THREADS) {
        const int channel = i / (ROWS * SIDE), at = i % (ROWS * SIDE);
        const int y = first_row + at / SIDE, x = first_column + at % SIDE;
        const bool inside = channel < CHANNELS && y < height && x < width;
        queries_here[channel * QUERY_PITCH + at] = inside ? query[channel * plane + (size_t)y * width + x] : Stored(0);
    }

    const int warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
    const int y = first_row + warp, x = first_column + lane / 2, half = lane % 2;
    float* const scores = scores_here + warp * SIDE * SCORE_PITCH;
    State<TOP_K> state;
    state.clear();

    for (int index = 0; index < references; ++index) {
        const Reference reference = names[index];  // the same for the whole grid
        if (reference.picture < 0 || reference.picture >= pictures) continue;
        int radius, dilation;
        window_of(reference.window, radius, dilation);
        const int reach = radius * dilation;
        const Stored* const own_keys = keys + (size_t)reference.picture * CHANNELS * plane;
#if CORRFLOW_TOP_K == 0
        const Stored* const own_values = values + (size_t)reference.picture * CLASSES * plane;
#endif
        // The middle of the window of the tile's first query, and of this lane's.
        const int first_middle_row = first_row + reference.down, first_middle_column = first_column + reference.right;
        const int middle_row = y + reference.down, middle_column = x + reference.right;
        const int top = max(first_middle_row - reach, 0), bottom = min(first_middle_row + ROWS + reach, height);
        const int left = max(first_middle_column - reach, 0);
        const int right = min(first_middle_column + SIDE + reach, width);
        for (int row = top; row < bottom; ++row) {
            // The same for a warp.
            const bool sees = y < height && abs(row - middle_row) <= reach && (row - middle_row) % dilation == 0;
            for (int start = left; start < right; start += CHUNK) {
                Scores products[GROUPS];
#pragma unroll
                for (int group = 0; group < GROUPS; ++group) products[group].clear();
#pragma unroll 1
                for (int first = 0; first < DEPTH; first += SLICE) {
                    const int depth = min(SLICE, DEPTH - first);
                    __syncthreads();  // no warp still needs what is overwritten now
                    for (int i = threadIdx.x; i < depth * CHUNK; i += THREADS) {
                        const int channel = i / CHUNK, at = i % CHUNK;
                        const bool inside = first + channel < CHANNELS && start + at < right;
                        keys_here[channel * KEY_PITCH + at] =
                            inside ? own_keys[(first + channel) * plane + (size_t)row * width + start + at] : Stored(0);
                    }
#if CORRFLOW_TOP_K == 0
                    for (int i = threadIdx.x; first == 0 && i < OWN_CLASSES * CHUNK; i += THREADS) {
                        const int n = i / CHUNK, at = i % CHUNK;
                        const bool inside = n < classes && start + at < right;
                        values_here[i] = inside ? number(own_values[n * plane + (size_t)row * width + start + at]) : 0.0f;
                    }
#endif
                    __syncthreads();  // what was loaded is there for all
                    if (!sees) continue;
#pragma unroll 1
                    for (int channel = 0; channel < depth; channel += SIDE)
#pragma unroll
                        for (int group = 0; group < GROUPS; ++group)
                            products[group].add(queries_here + (first + channel) * QUERY_PITCH + warp * SIDE,
                                                keys_here + channel * KEY_PITCH + group * SIDE);
                }
                if (!sees) continue;
#pragma unroll
                for (int group = 0; group < GROUPS; ++group) {
                    const int origin = start + group * SIDE;
                    if (origin >= right) break;
                    products[group].store(scores);
                    __syncwarp();  // the scores are there for the warp
                    const int phase = ((middle_column - origin) % dilation + dilation) % dilation;
                    const Columns columns = {phase + half * dilation, 2 * dilation, middle_column - reach - origin,
                                             min(min(middle_column + reach, width - 1) - origin, SIDE - 1)};
                    const unsigned place = ((unsigned)index * height + row) * width + origin;
                    state.fold(scores + lane / 2, values_here + group * SIDE, columns, place);
                    __syncwarp();  // no lane still needs them
                }
            }
        }
    }
    const bool writes = y < height && x < width;
    state.finish(values, names, copied + (size_t)y * width + x, classes, plane, writes);
}
