// Run every CPU kernel of LocalSoftCopy on random shapes under the sanitizers: sanitize SEED CASES
//
// Every buffer has exactly the size that kernel.h asks for and is a separate heap block, so the sanitizers detect any
// access beside it. Results are compared with a plain implementation of the definition.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <random>
#include <utility>
#include <vector>

#include "kernel.h"

using corrflow::Dtype;
using corrflow::Job;
using corrflow::Kernel;
using corrflow::SearchWindow;

namespace {

struct Free {
    void operator()(void* memory) const { std::free(memory); }
};

// Convert to half precision: magnitudes from 2^-14 to 4 that are exact in it; smaller numbers become 0.
std::uint16_t half_of(float value) {
    std::uint32_t bits;
    std::memcpy(&bits, &value, 4);
    const int exponent = int((bits >> 23) & 255) - 127 + 15;
    if (exponent < 1) return 0;
    return std::uint16_t((bits >> 16 & 0x8000u) | std::uint32_t(exponent) << 10 | (bits >> 13 & 0x3ffu));
}

struct Case {
    int K, C, N, H, W, top_k;
    Dtype dtype;
    std::vector<int> radius, dilation, dy, dx;
    std::vector<float> query;
    std::vector<std::vector<float>> keys, values;

    // Return [N] by the definition, in double precision, for one query. A stable sort in scanning order gives ties to
    // the earlier position.
    std::vector<double> expected(int y, int x) const {
        std::vector<double> scores;
        std::vector<std::pair<int, std::size_t>> places;  // window and cell
        for (int k = 0; k < K; ++k)
            for (int i = -radius[k]; i <= radius[k]; ++i)
                for (int j = -radius[k]; j <= radius[k]; ++j) {
                    const int row = y + dy[k] + i * dilation[k], column = x + dx[k] + j * dilation[k];
                    if (row < 0 || row >= H || column < 0 || column >= W) continue;
                    double score = 0;
                    for (int c = 0; c < C; ++c)
                        score += double(query[(c * H + y) * W + x]) * keys[k][(c * H + row) * W + column];
                    scores.push_back(score / 0.5);
                    places.emplace_back(k, std::size_t(row) * W + column);
                }
        const std::size_t count = top_k ? std::min<std::size_t>(top_k, scores.size()) : scores.size();
        std::vector<double> sums(N);
        if (scores.empty()) return sums;
        double highest = scores[0], total = 0;
        for (double score : scores) highest = std::max(highest, score);
        std::vector<std::size_t> order(scores.size());
        for (std::size_t i = 0; i < order.size(); ++i) order[i] = i;
        std::stable_sort(order.begin(), order.end(), [&](auto a, auto b) { return scores[a] > scores[b]; });
        for (std::size_t i = 0; i < count; ++i) {
            const std::size_t best = order[i];
            const double weight = std::exp(scores[best] - highest);
            total += weight;
            const auto [k, cell] = places[best];
            for (int n = 0; n < N; ++n) sums[n] += weight * values[k][std::size_t(n) * H * W + cell];
        }
        for (double& sum : sums) sum /= total;
        return sums;
    }
};

Case random_case(std::mt19937& random) {
    const auto between = [&](int low, int high) { return std::uniform_int_distribution<int>(low, high)(random); };
    Case made;
    made.K = between(1, 3), made.C = between(1, 9), made.N = between(1, 9);
    made.H = between(1, 14), made.W = between(1, 140);  // more columns than two panels of any kernel
    made.top_k = between(0, 1) ? between(1, 12) : 0;
    made.dtype = static_cast<Dtype>(between(0, 3));
    // Small integers are exact in every precision and make ties.
    const auto fill = [&](std::size_t count) {
        std::vector<float> numbers(count);
        for (float& number : numbers) number = float(between(-2, 2)) / 2;
        return numbers;
    };
    const std::size_t cells = std::size_t(made.H) * made.W;
    made.query = fill(made.C * cells);
    for (int k = 0; k < made.K; ++k) {
        made.radius.push_back(between(0, 5));
        made.dilation.push_back(between(1, 4));
        const bool moved = between(0, 1);
        made.dy.push_back(moved ? between(-40, 40) : 0);
        made.dx.push_back(moved ? between(-180, 180) : 0);
        made.keys.push_back(fill(made.C * cells));
        made.values.push_back(fill(made.N * cells));
    }
    return made;
}

// Pack the features times two as integers, [depth][H][W] words.
std::vector<std::int32_t> packed(const Case& made, const std::vector<float>& features) {
    const int bits = made.dtype == Dtype::Int16 ? 16 : 8, share = 32 / bits;
    const std::size_t cells = std::size_t(made.H) * made.W;
    std::vector<std::int32_t> words((made.C + share - 1) / share * cells);
    for (std::size_t c = 0; c < words.size() / cells * share; ++c)
        for (std::size_t i = 0; i < cells; ++i) {
            const int number = (c < std::size_t(made.C) ? int(2 * features[c * cells + i]) : 0) + (bits == 8 ? 128 : 0);
            const std::uint32_t field = std::uint32_t(number) & (bits == 8 ? 0xffu : 0xffffu);
            std::int32_t& word = words[c / share * cells + i];
            word = std::int32_t(std::uint32_t(word) | field << (c % share * bits));
        }
    return words;
}

bool agrees(const Case& made, const Kernel& kernel, int rows_per_part) {
    std::vector<std::vector<std::uint16_t>> halves(made.K);
    const bool half = made.dtype == Dtype::Float16, words = made.dtype > Dtype::Float16;
    std::vector<std::vector<std::int32_t>> integers(made.K);
    std::vector<std::vector<unsigned char>> marks(made.K);
    const std::vector<std::int32_t> query = words ? packed(made, made.query) : std::vector<std::int32_t>();
    std::vector<SearchWindow> windows;
    int positions = 0;
    for (int k = 0; k < made.K; ++k) {
        halves[k].resize(made.keys[k].size());  // exact capacity, so that a read beyond the end is detected
        for (std::size_t i = 0; i < halves[k].size(); ++i) halves[k][i] = half_of(made.keys[k][i]);
        if (words) integers[k] = packed(made, made.keys[k]);
        const void* keys = words  ? static_cast<const void*>(integers[k].data())
                           : half ? static_cast<const void*>(halves[k].data())
                                  : made.keys[k].data();
        const float scale = words ? 0.5f : 2.0f;  // both operands are packed times two
        marks[k].resize(made.H * corrflow::groups(made.W));
        for (int y = 0; y < made.H; ++y)
            corrflow::mark_row(made.values[k].data(), made.N, made.H, made.W, y, marks[k].data());
        windows.push_back({keys, made.values[k].data(), marks[k].data(), made.radius[k], made.dilation[k], made.dy[k], made.dx[k],
                           scale});
        const int across = std::min(made.radius[k], (made.W - 1 + std::abs(made.dx[k])) / made.dilation[k]);
        const int along = std::min(made.radius[k], (made.H - 1 + std::abs(made.dy[k])) / made.dilation[k]);
        positions += (2 * across + 1) * (2 * along + 1);
    }
    std::vector<float> copied(std::size_t(made.N) * made.H * made.W);
    Job job{};
    job.query = words ? static_cast<const void*>(query.data()) : made.query.data(), job.windows = windows.data();
    job.num_windows = made.K, job.N = made.N, job.H = made.H, job.W = made.W;
    job.depth = words ? int(query.size() / (made.H * made.W)) : made.C;
    job.dtype = made.dtype;
    job.top_k = std::min(made.top_k, positions);
    job.copied = copied.data();
    const std::size_t bytes = (kernel.scratch(job, rows_per_part) + 63) / 64 * 64;
    std::unique_ptr<void, Free> scratch(std::aligned_alloc(64, bytes));
    std::memset(scratch.get(), 0xff, bytes);  // NaN, to detect reads before writes
    for (int column = 0; column < made.W; column += kernel.columns)
        for (int row = 0; row < made.H; row += rows_per_part)
            kernel.panel(job, column, row, std::min(rows_per_part, made.H - row), scratch.get());
    for (int y = 0; y < made.H; ++y)
        for (int x = 0; x < made.W; ++x) {
            const std::vector<double> expected = made.expected(y, x);
            for (int n = 0; n < made.N; ++n) {
                const double got = copied[(std::size_t(n) * made.H + y) * made.W + x];
                if (std::abs(got - expected[n]) < 1e-4) continue;
                std::fprintf(stderr,
                             "%s kernel: label %d at (%d, %d) is %g, not %g: K %d, C %d, N %d, H %d, W %d, top_k %d,"
                             " dtype %d, radius %d, dilation %d, offset (%d, %d)\n",
                             kernel.name, n, y, x, got, expected[n], made.K, made.C, made.N, made.H, made.W, made.top_k,
                             int(made.dtype), made.radius[0], made.dilation[0], made.dy[0], made.dx[0]);
                return false;
            }
        }
    return true;
}

}  // namespace

int main(int count, char** arguments) {
    if (count != 3) return std::fprintf(stderr, "usage: sanitize SEED CASES\n"), 2;
    std::mt19937 random(std::strtoul(arguments[1], nullptr, 10));
    const std::vector<const Kernel*> kernels = corrflow::kernels_here();
    const int cases = std::atoi(arguments[2]);
    for (int i = 0; i < cases; ++i) {
        const Case made = random_case(random);
        const int rows_per_part = std::uniform_int_distribution<int>(1, made.H)(random);
        for (const Kernel* kernel : kernels)
            if (!agrees(made, *kernel, rows_per_part)) return 1;
    }
    std::printf("%d cases on %zu kernels\n", cases, kernels.size());
    return 0;
}
