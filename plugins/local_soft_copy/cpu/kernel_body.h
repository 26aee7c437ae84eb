// Fused kernel of LocalSoftCopy, a top-k local cross-attention: scores, top_k or softmax, and weighted copy of a panel.
//
// LANES neighbouring query columns share a register. The score of an offset needs one fused multiply-add per channel,
// with the key row shifted by the offset. A shifted key mostly lies across two cache lines, so its load costs more than
// its product. Therefore several query rows share each loaded key.
//
// A panel is a few registers wide and moves down the frame. The key rows of its window are copied to a small ring
// buffer: in place, each channel would lie on a page of its own, and the loop would wait for the cache. Only the scores
// of one key row are stored at a time. They are folded into a running softmax, or into sorted lists of the top_k best.
// Key rows come from the middle of the window outwards: near positions are mostly the best, so later insertions are few.
//
// The code uses only the compiler's fixed-width vectors, so one source serves all instruction sets. Files that include
// it define KERNEL_NAME, KERNEL_TEXT, LANES and REGISTERS. All symbols have internal linkage, and the C++ library is
// not used: otherwise the linker could keep a copy that is compiled for a newer processor.
#include "kernel.h"

#include <cstdint>
#include <cstring>
#include <type_traits>
#if defined(__SSE2__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

namespace {

using corrflow::GROUP;
using corrflow::Job;
using corrflow::SearchWindow;

constexpr int L = LANES;
constexpr int STRIPS = 64 / LANES;  // registers side by side in a panel
constexpr int P = STRIPS * L;
constexpr int ROWS = 4;  // query rows that are computed together

// Offsets (or value channels) per block: the sums, the smaller operand and one vector of the larger fit the registers.
// At most 8, which hide the latency of a product; larger blocks would only take longer to compile.
constexpr int most_beside(int rows) {
    int most = 1;
    while (most < 8 && rows * (most + 1) + (rows < most + 1 ? rows : most + 1) + 1 <= REGISTERS) ++most;
    return most;
}

typedef float Floats __attribute__((vector_size(4 * LANES)));
typedef std::int32_t Integers __attribute__((vector_size(4 * LANES)));

const float LOWEST = -__builtin_inff();

inline Floats load(const float* from) {
    Floats vector;
    std::memcpy(&vector, from, sizeof vector);
    return vector;
}

inline void store(float* to, Floats vector) { std::memcpy(to, &vector, sizeof vector); }

inline Integers load(const std::int32_t* from) {
    Integers vector;
    std::memcpy(&vector, from, sizeof vector);
    return vector;
}

inline void store(std::int32_t* to, Integers vector) { std::memcpy(to, &vector, sizeof vector); }

inline Floats broadcast(float value) { return value - Floats{}; }

inline Floats larger(Floats a, Floats b) { return a > b ? a : b; }

// Convert half to single precision by integer arithmetic: shift the fields, then correct the exponent's bias by a
// product, which also converts denormal numbers.
inline float single(std::uint16_t bits) {
    std::uint32_t magnitude = (bits & 0x7fffu) << 13;
    float value;
    std::memcpy(&value, &magnitude, 4);
    value *= 5.192296858534828e33f;  // 2^112
    std::memcpy(&magnitude, &value, 4);
    if ((bits & 0x7c00u) == 0x7c00u) magnitude |= 0x7f800000u;  // infinity and NaN
    magnitude |= (bits & 0x8000u) << 16;
    std::memcpy(&value, &magnitude, 4);
    return value;
}

inline float single(float value) { return value; }

inline std::int32_t single(std::int32_t word) { return word; }  // packed words are not converted

inline Floats load(const std::uint16_t* from) {
#if LANES == 16 && defined(__AVX512F__)
    return (Floats)_mm512_cvtph_ps(_mm256_loadu_si256((const __m256i*)from));
#elif LANES == 8 && defined(__F16C__)
    return (Floats)_mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)from));
#elif defined(__aarch64__)
    return (Floats)vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(from)));
#else
    Floats vector;
    for (int lane = 0; lane < L; ++lane) vector[lane] = single(from[lane]);
    return vector;
#endif
}

// Return one bit for each lane with a >= b; no bit for NaN.
inline unsigned lanes_not_below(Floats a, Floats b) {
#if LANES == 16 && defined(__AVX512F__)
    return _mm512_cmp_ps_mask((__m512)a, (__m512)b, _CMP_GE_OQ);
#elif LANES == 8 && defined(__AVX2__)
    return (unsigned)_mm256_movemask_ps(_mm256_cmp_ps((__m256)a, (__m256)b, _CMP_GE_OQ));
#else
    const Integers above = a >= b;
#if defined(__aarch64__)
    const Integers bit = {1, 2, 4, 8};
    return vaddvq_u32((uint32x4_t)(above & bit));
#else
    unsigned bits = 0;
    for (int lane = 0; lane < L; ++lane) bits |= (unsigned)(above[lane] & 1) << lane;
    return bits;
#endif
#endif
}

constexpr unsigned EVERY_LANE = (1u << L) - 1;

// Compute e^x for x <= 0 to about one unit in the last place. Results for x < -87 vanish in any sum with e^0.
inline Floats exponential(Floats x) {
    x = larger(x, broadcast(-87.0f));
    // Adding 1.5 * 2^23 rounds to an integer and leaves it in the low bits.
    const Floats shifted = x * 1.44269504088896341f + 12582912.0f;
    const Floats whole = shifted - 12582912.0f;
    const Integers exponent = ((Integers)shifted - 0x4b400000 + 127) << 23;
    const Floats rest = (x - whole * 0.693359375f) + whole * 2.12194440e-4f;  // ln 2 in two parts
    Floats series = broadcast(1.0f / 5040);
    series = series * rest + 1.0f / 720;
    series = series * rest + 1.0f / 120;
    series = series * rest + 1.0f / 24;
    series = series * rest + 1.0f / 6;
    series = series * rest + 0.5f;
    series = series * rest + 1.0f;
    series = series * rest + 1.0f;
    return series * (Floats)exponent;
}

// Number types of packed words, and their multiply-add. Singles: one float32 channel.
struct Singles {
    typedef float Word;
    typedef Floats Words;
    static Words add(Words sums, Words query, Words key) { return sums + query * key; }
    static Floats sum(Words sums) { return sums; }
};

// Two signed 16-bit channels. The scale that `pack` chooses rules out overflow of the sums.
struct Pairs {
    typedef std::int32_t Word;
    typedef Integers Words;
#if LANES == 4 && defined(__aarch64__)
    // Sort four pairs into the four first channels and the four second channels.
    static int16x8_t first_then_second(Words pairs) {
        const uint8x16_t order = {0, 1, 4, 5, 8, 9, 12, 13, 2, 3, 6, 7, 10, 11, 14, 15};
        return vreinterpretq_s16_u8(vqtbl1q_u8((uint8x16_t)pairs, order));
    }
#endif
    static Words add(Words sums, Words query, Words key) {
#if LANES == 16 && defined(__AVX512VNNI__)
        return (Words)_mm512_dpwssd_epi32((__m512i)sums, (__m512i)query, (__m512i)key);
#elif LANES == 16 && defined(__AVX512BW__)
        return sums + (Words)_mm512_madd_epi16((__m512i)query, (__m512i)key);
#elif LANES == 8 && defined(__AVXVNNI__)
        return (Words)_mm256_dpwssd_avx_epi32((__m256i)sums, (__m256i)query, (__m256i)key);
#elif LANES == 8 && defined(__AVX2__)
        return sums + (Words)_mm256_madd_epi16((__m256i)query, (__m256i)key);
#elif LANES == 4 && defined(__SSE2__)
        return sums + (Words)_mm_madd_epi16((__m128i)query, (__m128i)key);
#elif LANES == 4 && defined(__aarch64__)
        const int16x8_t queries = first_then_second(query), keys = first_then_second(key);
        const int32x4_t first = vmlal_s16((int32x4_t)sums, vget_low_s16(queries), vget_low_s16(keys));
        return (Words)vmlal_high_s16(first, queries, keys);
#else
        return sums + (query << 16 >> 16) * (key << 16 >> 16) + (query >> 16) * (key >> 16);
#endif
    }
    static Floats sum(Words sums) { return __builtin_convertvector(sums, Floats); }
};

// Four 8-bit channels, stored plus 128. Queries become signed when they are read.
struct Fours {
    typedef std::int32_t Word;
    typedef Integers Words;
#if LANES == 4 && defined(__ARM_FEATURE_DOTPROD)
    // sdot multiplies signed by signed, so keys become signed when they are fetched.
    static constexpr Word KEY_EXCESS = 0, KEY_FLIP = (Word)0x80808080u;
    static Words add(Words sums, Words query, Words key) {
        return (Words)vdotq_s32((int32x4_t)sums, (int8x16_t)query, (int8x16_t)key);
    }
#else
    static constexpr Word KEY_EXCESS = (Word)0x80808080u, KEY_FLIP = 0;
    static Words add(Words sums, Words query, Words key) {
#if LANES == 16 && defined(__AVX512VNNI__)
        return (Words)_mm512_dpbusd_epi32((__m512i)sums, (__m512i)key, (__m512i)query);
#elif LANES == 8 && defined(__AVXVNNI__)
        return (Words)_mm256_dpbusd_avx_epi32((__m256i)sums, (__m256i)key, (__m256i)query);
#else
        return sums + (query << 24 >> 24) * (key & 255) + (query << 16 >> 24) * (key >> 8 & 255) +
               (query << 8 >> 24) * (key >> 16 & 255) + (query >> 24) * (key >> 24 & 255);
#endif
    }
#endif
    static Floats sum(Words sums) { return __builtin_convertvector(sums, Floats); }
};

// Compute sums[r][o] = add(sums[r][o], row(r), other(o)). The smaller operand stays in registers, the larger is streamed.
template <int R, int OTHERS, typename Vector, typename Row, typename Other, typename Add>
inline void add_products(Vector (&sums)[R][OTHERS], Row row, Other other, Add add) {
    Vector held[R < OTHERS ? R : OTHERS];
    if constexpr (R < OTHERS) {
#pragma GCC unroll 16
        for (int r = 0; r < R; ++r) held[r] = row(r);
#pragma GCC unroll 32
        for (int o = 0; o < OTHERS; ++o) {
            const Vector one = other(o);
#pragma GCC unroll 16
            for (int r = 0; r < R; ++r) sums[r][o] = add(sums[r][o], held[r], one);
        }
    } else {
#pragma GCC unroll 32
        for (int o = 0; o < OTHERS; ++o) held[o] = other(o);
#pragma GCC unroll 16
        for (int r = 0; r < R; ++r) {
            const Vector one = row(r);
#pragma GCC unroll 32
            for (int o = 0; o < OTHERS; ++o) sums[r][o] = add(sums[r][o], one, held[o]);
        }
    }
}

// Compute the scores of R query rows at OFFSETS neighbouring offsets: query [depth][ROWS][L], keys [depth][stride] from
// the first offset on, starts [ROWS][L] the initial sums, scores [R][score_stride].
template <typename A, int R, int OFFSETS>
inline void score_block(const typename A::Word* query, const typename A::Word* keys, const typename A::Word* starts,
                        int depth, int stride, int step, float scale, float* scores, int score_stride) {
    typedef typename A::Words Words;
    Words sums[R][OFFSETS];
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 32
        for (int o = 0; o < OFFSETS; ++o) sums[r][o] = load(starts + r * L);
    for (int c = 0; c < depth; ++c) {
        add_products(
            sums, [&](int r) { return load(query + r * L); }, [&](int o) { return load(keys + o * step); }, &A::add);
        query += ROWS * L;
        keys += stride;
    }
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 32
        for (int o = 0; o < OFFSETS; ++o) store(scores + r * score_stride + o * L, A::sum(sums[r][o]) * scale);
}

// Dispatch score_block on the number of offsets at run time.
template <typename A, int R, int OFFSETS>
inline void score_some(int count, const typename A::Word* query, const typename A::Word* keys,
                       const typename A::Word* starts, int depth, int stride, int step, float scale, float* scores,
                       int score_stride) {
    if (count == OFFSETS)
        score_block<A, R, OFFSETS>(query, keys, starts, depth, stride, step, scale, scores, score_stride);
    else if constexpr (OFFSETS > 1)
        score_some<A, R, OFFSETS - 1>(count, query, keys, starts, depth, stride, step, scale, scores, score_stride);
}

// Running state of one query row of the panel.
struct Row {
    float highest[P];   // full softmax: maximum so far; top_k: lowest score of a full list
    float total[P];     // full softmax: sum of weights
    int count[P];       // top_k: scores in the list
    bool live[STRIPS];  // true if a value within reach of the strip is not zero; otherwise zero is the exact result
};

// Panel of query columns, divided into strips of LANES columns.
struct Panel {
    const Job& job;
    const int column, first_row, rows;
    const int columns;     // inside the frame; further lanes compute on zeros and are never written
    Row* state;            // [rows]
    float* copied;         // [rows][N][P]: weighted sums of values
    float* best;           // [rows][P][top_k]: best scores, descending
    std::int32_t* places;  // [rows][P][top_k]: window * H * W + row * W + column of each
    void* query;           // [STRIPS][depth][ROWS][L] words
    void* starts;          // [STRIPS][ROWS][L] words: initial sums
    float* scores;         // [ROWS][offsets][L] of one key row
    char* ring;            // [slots][depth + N][width] words

    // Current search window:
    const SearchWindow* window;
    int index, reach, step, offsets, width, slots;
    int lowest;  // first key row of a remainder, counted as if the window had no offset

    // Largest offset to either side that can lie inside the frame.
    static int reach_columns(const Job& job, const SearchWindow& window) {
        const int most = (job.W - 1 + distance(window.dx)) / window.dilation;
        return window.radius < most ? window.radius : most;
    }

    static int reach_rows(const Job& job, const SearchWindow& window) {
        const int most = (job.H - 1 + distance(window.dy)) / window.dilation;
        return window.radius < most ? window.radius : most;
    }

    static int distance(int offset) { return offset < 0 ? -offset : offset; }

    static int width_of(int reach, int step) { return (P + 2 * reach * step + L - 1) / L * L; }

    // Allocator of consecutive parts of the scratch memory; with a null base it only counts bytes.
    struct Allotment {
        char* base;
        std::size_t used = 0;
        template <typename T>
        T* take(std::size_t count) {
            T* part = base ? reinterpret_cast<T*>(base + used) : nullptr;
            used += (count * sizeof(T) + 63) / 64 * 64;
            return part;
        }
    };

    Panel(const Job& job, int column, int first_row, int rows, void* scratch)
        : job(job), column(column), first_row(first_row), rows(rows), columns(job.W - column < P ? job.W - column : P) {
        allot(static_cast<char*>(scratch));
    }

    std::size_t allot(char* base) {
        std::size_t widest = 1, rings = 0;
        for (int k = 0; k < job.num_windows; ++k) {
            const SearchWindow& each = job.windows[k];
            const std::size_t across = reach_columns(job, each), along = reach_rows(job, each);
            if (2 * across + 1 > widest) widest = 2 * across + 1;
            const std::size_t floats = (2 * along + ROWS) * (job.depth + job.N) * width_of((int)across, each.dilation);
            if (floats > rings) rings = floats;
        }
        Allotment parts{base};
        state = parts.take<Row>(rows);
        copied = parts.take<float>((std::size_t)rows * job.N * P);
        best = parts.take<float>((std::size_t)rows * P * job.top_k);
        places = parts.take<std::int32_t>((std::size_t)rows * P * job.top_k);
        query = parts.take<float>((std::size_t)STRIPS * job.depth * ROWS * L);
        starts = parts.take<float>(STRIPS * ROWS * L);
        scores = parts.take<float>(ROWS * widest * L);
        ring = parts.take<char>(4 * rings);
        return parts.used;
    }

    void run() {
        begin();
        // The newest reference frame is searched first: its scores are mostly the best, so later insertions are few.
        for (int k = job.num_windows - 1; k >= 0; --k) {
            at(k);
            // With a dilation, a row attends only to rows of the same remainder, so each remainder is a separate image.
            for (int remainder = 0; remainder < step && remainder < job.H; ++remainder) switch (job.dtype) {
                    case corrflow::Dtype::Float32: fold_remainder<Singles, float>(remainder); break;
                    case corrflow::Dtype::Float16: fold_remainder<Singles, std::uint16_t>(remainder); break;
                    case corrflow::Dtype::Int16: fold_remainder<Pairs, std::int32_t>(remainder); break;
                    case corrflow::Dtype::UInt8: fold_remainder<Fours, std::int32_t>(remainder); break;
                }
        }
        for (int r = 0; r < rows; ++r) end(r);
    }

    void at(int k) {
        index = k;
        window = job.windows + k;
        reach = reach_columns(job, *window);
        step = window->dilation;
        offsets = 2 * reach + 1;
        width = width_of(reach, step);
        slots = 2 * reach_rows(job, *window) + ROWS;
    }

    void begin() {
        for (int r = 0; r < rows; ++r) {
            Row& row = state[r];
            for (int strip = 0; strip < STRIPS; ++strip) row.live[strip] = false;
            for (int lane = 0; lane < P; ++lane) {
                row.total[lane] = 0.0f;
                row.count[lane] = 0;
                // No score exceeds infinity, so the lists of lanes outside the frame stay empty.
                row.highest[lane] = job.top_k && lane >= columns ? -LOWEST : LOWEST;
            }
        }
        for (int k = 0; k < job.num_windows; ++k) {
            at(k);
            find_live();
        }
        std::memset(copied, 0, sizeof(float) * rows * job.N * P);
    }

    // Mark the strips that have a value other than zero within reach of the current window.
    void find_live() {
        const int across = reach * step, along = reach_rows(job, *window) * step, groups = corrflow::groups(job.W);
        for (int strip = 0; strip * L < columns; ++strip) {
            const int first = column + window->dx + strip * L - across, last = first + L - 1 + 2 * across;
            if (last < 0 || first >= job.W) continue;
            const int from = (first > 0 ? first : 0) / GROUP, to = (last < job.W - 1 ? last : job.W - 1) / GROUP;
            for (int r = 0; r < rows; ++r) {
                bool& live = state[r].live[strip];
                const int middle = first_row + window->dy + r;
                for (int y = middle - along; y <= middle + along && !live; y += step)
                    for (int group = from; group <= to && y >= 0 && y < job.H; ++group)
                        live |= window->marks[(std::size_t)y * groups + group] != 0;
            }
        }
    }

    // Fold all query rows y with y % step == remainder, ROWS at a time. Rows are counted within the remainder: u means
    // row u * step + remainder of the frame.
    template <typename A, typename Key>
    void fold_remainder(int remainder) {
        if (first_row + rows - 1 < remainder) return;
        lowest = divided_up(-window->dy - remainder, step);
        const int highest = -divided_up(window->dy + remainder - (job.H - 1), step);
        const int first = first_row > remainder ? (first_row - remainder + step - 1) / step : 0;
        const int beyond = (first_row + rows - 1 - remainder) / step + 1;
        const int along = reach_rows(job, *window);
        int fetched = lowest;  // key rows before this one are in the ring, as far as its size allows
        for (int u = first; u < beyond; u += ROWS) {
            const int group = beyond - u < ROWS ? beyond - u : ROWS;
            int own[ROWS];  // missing rows repeat the last one
            for (int r = 0; r < ROWS; ++r) own[r] = (u + (r < group ? r : group - 1)) * step + remainder - first_row;
            bool live[STRIPS], any = false;
            for (int strip = 0; strip < STRIPS; ++strip) {
                live[strip] = false;
                for (int r = 0; r < ROWS; ++r) live[strip] |= state[own[r]].live[strip];
                any |= live[strip];
                if (live[strip]) read_query<A>(strip, own);
            }
            if (!any) continue;
            const int top = u - along > lowest ? u - along : lowest;
            const int bottom = u + group - 1 + along < highest ? u + group - 1 + along : highest;
            const int down = remainder + window->dy;
            if (fetched < top) fetched = top;
            for (; fetched <= bottom; ++fetched) fetch<A, Key>(fetched * step + down, slot_of(fetched));
            // One strip at a time, so that its queries stay in the first-level cache.
            for (int strip = 0; strip < STRIPS; ++strip) {
                if (!live[strip]) continue;
                const int middle = u + group / 2;
                for (int i = 0; i < 2 * (along + group); ++i) {
                    const int v = i % 2 ? middle - (i + 1) / 2 : middle + i / 2;
                    if (v < top || v > bottom) continue;
                    // Most key rows lie in the windows of all query rows, the first and last few in some of them.
                    const int from = v - along - u > 0 ? v - along - u : 0;
                    const int to = v + along - u < group - 1 ? v + along - u : group - 1;
                    fold_rows<A, ROWS>(to - from + 1, strip, v * step + down, slot_of(v), own, from);
                }
            }
        }
    }

    char* slot_of(int v) { return ring + 4 * (std::size_t)((v - lowest) % slots) * (job.depth + job.N) * width; }

    static int divided_up(int a, int b) { return a > 0 ? (a + b - 1) / b : a / b; }

    // Dispatch fold on the number of query rows at run time.
    template <typename A, int R>
    void fold_rows(int count, int strip, int y, char* slot, const int* own, int first) {
        if (count == R)
            fold<A, R>(strip, y, slot, own, first);
        else if constexpr (R > 1)
            fold_rows<A, R - 1>(count, strip, y, slot, own, first);
    }

    template <typename A>
    void read_query(int strip, const int* own) {
        typedef typename A::Word Word;
        typedef typename A::Words Words;
        const int first = column + strip * L, lanes = job.W - first < L ? job.W - first : L;
        Word* to = static_cast<Word*>(query) + (std::size_t)strip * job.depth * ROWS * L;
        const int depth = job.depth;  // a local copy cannot alias the writes
        const std::size_t plane = (std::size_t)job.H * job.W;
        const Word* rows[ROWS];
        for (int r = 0; r < ROWS; ++r)
            rows[r] = static_cast<const Word*>(job.query) + (std::size_t)(first_row + own[r]) * job.W + first;
        Words excess[ROWS] = {};  // of the scores, from the excess of 128 in the keys
        for (int c = 0; c < depth; ++c, to += ROWS * L) {
#pragma GCC unroll 4
            for (int r = 0; r < ROWS; ++r) {
                const Word* from = rows[r] + c * plane;
                Words words{};
                if (lanes == L)
                    words = load(from);
                else
                    for (int lane = 0; lane < lanes; ++lane) words[lane] = from[lane];
                if constexpr (std::is_same_v<A, Fours>) {
                    words ^= (Word)0x80808080u;
                    if (Fours::KEY_EXCESS) excess[r] = Fours::add(excess[r], words, Words{} + Fours::KEY_EXCESS);
                }
                store(to + r * L, words);
            }
        }
        Word* start = static_cast<Word*>(starts) + strip * ROWS * L;
        for (int r = 0; r < ROWS; ++r) store(start + r * L, -excess[r]);
    }

    // Copy key row y and its values to a slot of the ring, [depth + N][width], from the first offset of the first lane on.
    // Columns outside the frame become zeros, whose scores are excluded later.
    template <typename A, typename Key>
    void fetch(int y, char* slot) const {
        typedef typename A::Word Word;
        const std::size_t plane = (std::size_t)job.H * job.W;
        const int start = column + window->dx - reach * step;
        const bool inside = start < job.W && start + width > 0;
        const int left = !inside ? width : start < 0 ? -start : 0;
        const int right = !inside ? width : job.W - start < width ? job.W - start : width;
        const std::ptrdiff_t from = inside ? (std::ptrdiff_t)y * job.W + start + left : 0;
        const Key* keys = static_cast<const Key*>(window->keys) + from;
        Word* to = reinterpret_cast<Word*>(slot);
        const int depth = job.depth, to_next = width;  // local copies cannot alias the writes
        for (int c = 0; c < depth; ++c, to += to_next) {
            if constexpr (std::is_same_v<A, Fours>)
                fetch_channel<Fours::KEY_FLIP>(keys + c * plane, to, left, right, to_next);
            else
                fetch_channel<0>(keys + c * plane, to, left, right, to_next);
        }
        // With top_k, only the values of the best positions are read, and in place.
        const float* values = window->values + from;
        float* after = values_in(slot);
        for (int n = 0; n < job.N && !job.top_k; ++n, after += width)
            fetch_channel<0>(values + n * plane, after, left, right, width);
    }

    float* values_in(char* slot) const { return reinterpret_cast<float*>(slot + 4 * (std::size_t)job.depth * width); }

    // width is a multiple of L. FLIP: bits to invert
    template <std::int32_t FLIP, typename Key, typename Word>
    static void fetch_channel(const Key* from, Word* to, int left, int right, int width) {
        // The copy overwrites the zeros that reach into it.
        for (int x = 0; x < left; x += L) store(to + x, decltype(load(to)){});
        for (int x = width - L; x + L > right; x -= L) store(to + x, decltype(load(to)){});
        int x = left;
        for (; x + L <= right; x += L) store(to + x, flipped<FLIP>(load(from + (x - left))));
        if (x == right) return;
        if (right - left >= L)
            store(to + right - L, flipped<FLIP>(load(from + (right - left - L))));
        else
            for (; x < right; ++x) to[x] = flipped<FLIP>(single(from[x - left]));
    }

    template <std::int32_t FLIP, typename Value>
    static Value flipped(Value value) {
        if constexpr (FLIP)
            return value ^ FLIP;
        else
            return value;
    }

    // Fold a key row into the query rows own[first] .. own[first + R - 1] of a strip.
    template <typename A, int R>
    void fold(int strip, int y, char* slot, const int* own, int first) {
        typedef typename A::Word Word;
        constexpr int MOST = most_beside(R);
        const int blocks = (offsets + MOST - 1) / MOST;
        const Word* queries = static_cast<Word*>(query) + (std::size_t)strip * job.depth * ROWS * L + first * L;
        const Word* start = static_cast<Word*>(starts) + (strip * ROWS + first) * L;
        const Word* keys = reinterpret_cast<Word*>(slot) + strip * L;
        // Blocks have nearly equal sizes: a block of one offset would wait for its own sums.
        for (int block = 0, o = 0; block < blocks; ++block) {
            const int count = (offsets - o + blocks - block - 1) / (blocks - block);
            score_some<A, R, MOST>(count, queries, keys + o * step, start, job.depth, width, step, window->scale,
                                   scores + o * L, offsets * L);
            o += count;
        }
        const int left = column + window->dx + strip * L;
        if (left - reach * step < 0 || left + L - 1 + reach * step >= job.W) exclude(left, R);
        if (job.top_k)
            for (int r = 0; r < R; ++r) keep(strip, y, own[first + r], scores + (std::size_t)r * offsets * L);
        else
            weigh<R>(strip, values_in(slot) + strip * L, own + first);
    }

    // Exclude positions outside the frame. left: column of the first lane's window centre
    void exclude(int left, int count) {
        const float excluded = job.top_k ? __builtin_nanf("") : LOWEST;
        for (int o = 0; o < offsets; ++o) {
            const int shifted = left + (o - reach) * step;
            for (int lane = 0; lane < L; ++lane)
                if (shifted + lane < 0 || shifted + lane >= job.W)
                    for (int r = 0; r < count; ++r) scores[((std::size_t)r * offsets + o) * L + lane] = excluded;
        }
    }

    // Insert the scores of a key row that are not below the lowest of their lists: from the middle of the window outwards,
    // because near positions are mostly the best.
    void keep(int strip, int y, int r, const float* row_scores) {
        const float* highest = state[r].highest + strip * L;
        const std::int32_t first = (index * job.H + y) * job.W + column + strip * L + window->dx - reach * step;
        Floats lowest_kept = load(highest);
        for (int i = 0; i < offsets; ++i) {
            const int o = i % 2 ? reach - (i + 1) / 2 : reach + i / 2;
            const float* score = row_scores + (std::size_t)o * L;
            unsigned better = lanes_not_below(load(score), lowest_kept);
            if (!better) continue;
            for (; better; better &= better - 1) {
                const int lane = __builtin_ctz(better);
                insert(r, strip * L + lane, score[lane], first + o * step + lane);
            }
            lowest_kept = load(highest);
        }
    }

    // Insert into the descending list of a query; of equal scores, the earlier place comes first.
    void insert(int r, int lane, float score, std::int32_t place) {
        const std::size_t list = ((std::size_t)r * P + lane) * job.top_k;
        float* own = best + list;
        std::int32_t* where = places + list;
        int& count = state[r].count[lane];
        const auto behind = [&](int at) { return own[at] < score || (own[at] == score && where[at] > place); };
        if (count == job.top_k && !behind(count - 1)) return;
        int at = count < job.top_k ? count++ : count - 1;
        for (; at > 0 && behind(at - 1); --at) {
            own[at] = own[at - 1];
            where[at] = where[at - 1];
        }
        own[at] = score;
        where[at] = place;
        if (count == job.top_k) state[r].highest[lane] = own[job.top_k - 1];
    }

    float* sums_of(int r, int n, int strip) { return copied + ((std::size_t)r * job.N + n) * P + strip * L; }

    template <int R>
    void weigh(int strip, const float* values, const int* own) {
        for (int r = 0; r < R; ++r) {
            Row& row = state[own[r]];
            float* weights = scores + (std::size_t)r * offsets * L;
            Floats peak = load(weights);
            for (int o = 1; o < offsets; ++o) peak = larger(load(weights + o * L), peak);
            Floats highest = load(row.highest + strip * L), total = load(row.total + strip * L);
            if (lanes_not_below(highest, peak) != EVERY_LANE) {
                const Floats now = larger(peak, highest), shrink = exponential(highest - now);
                highest = now;
                store(row.highest + strip * L, now);
                total *= shrink;
                for (int n = 0; n < job.N; ++n) {
                    float* sums = sums_of(own[r], n, strip);
                    store(sums, load(sums) * shrink);
                }
            }
            for (int o = 0; o < offsets; ++o) {
                const Floats weight = exponential(load(weights + o * L) - highest);
                store(weights + o * L, weight);
                total += weight;
            }
            store(row.total + strip * L, total);
        }
        constexpr int MOST = most_beside(R) < 4 ? most_beside(R) : 4;
        int n = 0;
        for (; n + MOST <= job.N; n += MOST) copy<R, MOST>(strip, values + (std::size_t)n * width, n, own);
        for (; n + 2 <= job.N; n += 2) copy<R, 2>(strip, values + (std::size_t)n * width, n, own);
        for (; n < job.N; ++n) copy<R, 1>(strip, values + (std::size_t)n * width, n, own);
    }

    // Add the weighted values of CLASSES value channels from n on.
    template <int R, int CLASSES>
    void copy(int strip, const float* values, int n, const int* own) {
        Floats sums[R][CLASSES];
#pragma GCC unroll 8
        for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
            for (int i = 0; i < CLASSES; ++i) sums[r][i] = load(sums_of(own[r], n + i, strip));
        for (int o = 0; o < offsets; ++o)
            add_products(
                sums, [&](int r) { return load(scores + ((std::size_t)r * offsets + o) * L); },
                [&](int i) { return load(values + (std::size_t)i * width + o * step); }, &Singles::add);
#pragma GCC unroll 8
        for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
            for (int i = 0; i < CLASSES; ++i) store(sums_of(own[r], n + i, strip), sums[r][i]);
    }

    void end(int r) {
        Row& row = state[r];
        for (int strip = 0; strip * L < columns; ++strip) {
            if (!row.live[strip]) {
                for (int n = 0; n < job.N; ++n) store(sums_of(r, n, strip), Floats{});
                continue;
            }
            for (int lane = strip * L; job.top_k && lane < strip * L + L && lane < columns; ++lane) copy_best(r, lane);
            for (int n = 0; n < job.N; ++n) {
                float* sums = sums_of(r, n, strip);
                store(sums, load(sums) / load(row.total + strip * L));
            }
        }
        for (int n = 0; n < job.N; ++n)
            std::memcpy(job.copied + ((std::size_t)n * job.H + first_row + r) * job.W + column, sums_of(r, n, 0),
                        sizeof(float) * columns);
    }

    // Copy the values of the best scores of one query, weighted by softmax.
    void copy_best(int r, int lane) {
        const std::size_t list = ((std::size_t)r * P + lane) * job.top_k;
        float* own = best + list;
        const int count = state[r].count[lane];
        const float peak = own[0];
        for (int i = 0; i < count; i += L) {
            Floats some = broadcast(peak);
            const int here = count - i < L ? count - i : L;
            std::memcpy(&some, own + i, sizeof(float) * here);
            some = exponential(some - peak);
            std::memcpy(own + i, &some, sizeof(float) * here);
        }
        const std::int32_t frame = job.H * job.W;
        float* sums = sums_of(r, 0, 0) + lane;
        float total = 0.0f;
        for (int i = 0; i < count; ++i) {
            const std::int32_t place = places[list + i], k = place / frame;
            const float* value = job.windows[k].values + (place - k * frame);
            for (int n = 0; n < job.N; ++n) sums[n * P] += own[i] * value[(std::size_t)n * frame];
            total += own[i];
        }
        state[r].total[lane] = count ? total : 1.0f;  // zeros if all windows lie outside the frame
    }
};

std::size_t scratch(const Job& job, int rows) { return Panel(job, 0, 0, rows, nullptr).allot(nullptr); }

void run_panel(const Job& job, int column, int first_row, int rows, void* scratch) {
    Panel(job, column, first_row, rows, scratch).run();
}

}  // namespace

namespace corrflow {
extern const Kernel KERNEL_NAME;
const Kernel KERNEL_NAME = {KERNEL_TEXT, P, &scratch, &run_panel};
}  // namespace corrflow
