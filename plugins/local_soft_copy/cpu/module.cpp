// Python binding: argument checks, kernel selection and threads.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <memory>
#include <new>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "kernel.h"

namespace py = pybind11;

namespace {

using corrflow::Dtype;
using corrflow::Job;
using corrflow::Kernel;
using corrflow::kernels_here;
using corrflow::SearchWindow;
using FloatArray = py::array_t<float, py::array::c_style>;
using WordArray = py::array_t<std::int32_t, py::array::c_style>;

constexpr int MAX_OFFSET = 65536;  // of radii and dilations as well; positions then fit 32 bits
constexpr int MOST_ROWS = 64, LEAST_ROWS = 16;  // per task; with fewer rows, more key rows are fetched by several tasks

const Kernel& kernel_named(const std::string& name) {
    for (const Kernel* kernel : kernels_here())
        if (name == kernel->name || name == "auto") return *kernel;
    throw std::invalid_argument("no kernel " + name + " for this processor");
}

struct Free {
    void operator()(void* memory) const { std::free(memory); }
};

// Run task(0) .. task(count - 1) on `threads` threads, each with its own scratch memory. Threads are started anew for
// each call: a start takes tens of microseconds, little compared with a call.
template <typename Task>
void in_parallel(int threads, int count, std::size_t scratch_bytes, const Task& task) {
    threads = std::max(1, std::min(threads, count));
    std::vector<std::unique_ptr<void, Free>> scratch;
    for (int i = 0; i < threads; ++i) {
        scratch.emplace_back(std::aligned_alloc(64, (scratch_bytes + 63) / 64 * 64));
        if (!scratch.back()) throw std::bad_alloc();
    }
    std::atomic<int> next{0};
    const auto work = [&](int thread) {
        for (int i; (i = next++) < count;) task(i, scratch[thread].get());
    };
    std::vector<std::thread> others;
    for (int i = 1; i < threads; ++i) others.emplace_back(work, i);
    work(0);
    for (std::thread& other : others) other.join();
}

void expect(const py::array& array, const std::vector<py::ssize_t>& shape, const char* name) {
    if (array.ndim() != static_cast<py::ssize_t>(shape.size()) ||
        !std::equal(shape.begin(), shape.end(), array.shape()) || !(array.flags() & py::array::c_style))
        throw std::invalid_argument(std::string(name) + ": unexpected shape, or not contiguous");
}

// Loops over a row are separate functions without branches, so that compilers vectorise them.

// Return the largest magnitude of a row; NaN counts as 0.
float largest_of(const float* row, int W) {
    // The bits of positive floats are ordered as the floats are, and a maximum of integers vectorises without flags.
    std::int32_t most = 0;
    for (int x = 0; x < W; ++x) {
        std::int32_t own;
        std::memcpy(&own, row + x, sizeof own);
        own &= 0x7fffffff;
        own = own > 0x7f800000 ? 0 : own;
        most = own > most ? own : most;
    }
    float largest;
    std::memcpy(&largest, &most, sizeof largest);
    return largest;
}

void add_squares(const float* row, float scale, int W, float* __restrict squares) {
    for (int x = 0; x < W; ++x) {
        const float own = row[x] * scale, square = own * own;
        squares[x] += square == square ? square : 0.0f;
    }
}

// Round to integers from -limit to limit, add `excess`, and write them to bits of words. NaN becomes -limit.
void add_channel(const float* row, float scale, float limit, std::int32_t excess, std::uint32_t mask, int shift, int W,
                 std::uint32_t* __restrict words) {
    for (int x = 0; x < W; ++x) {
        float value = row[x] * scale;
        value = value > -limit ? value : -limit;
        value = value < limit ? value : limit;
        const std::int32_t whole = std::int32_t(value + (value < 0 ? -0.5f : 0.5f)) + excess;
        words[x] |= (std::uint32_t(whole) & mask) << shift;
    }
}

// Pack features [C, H, W] float32 into words [depth, H, W] of two or four channels, and return the scale factor. With
// this scale no number is clipped, and the sum of products of two packed cells cannot overflow an int32.
float pack(const FloatArray& features, int bits, WordArray& words, int threads) {
    if (features.ndim() != 3 || (bits != 16 && bits != 8)) throw std::invalid_argument("features [C, H, W], 16 or 8 bits");
    const int C = int(features.shape(0)), H = int(features.shape(1)), W = int(features.shape(2)), share = 32 / bits;
    const int depth = (C + share - 1) / share;
    expect(words, {depth, H, W}, "words");
    const float* from = features.data();
    auto* to = reinterpret_cast<std::uint32_t*>(words.mutable_data());
    const std::size_t plane = std::size_t(H) * W;
    float scale = 1.0f;
    {
        py::gil_scoped_release release;
        std::vector<float> largest(H), longest(H);
        in_parallel(threads, H, W * sizeof(float), [&](int y, void* scratch) {
            const float* rows = from + std::size_t(y) * W;
            float most = 0.0f;
            for (int c = 0; c < C; ++c) most = std::max(most, largest_of(rows + c * plane, W));
            largest[y] = most;
            // Scaling by the maximum avoids squares beyond the range of a float.
            const float part = std::max(std::min(1 / most, std::numeric_limits<float>::max()),
                                        std::numeric_limits<float>::min());
            float* squares = static_cast<float*>(scratch);
            std::fill(squares, squares + W, 0.0f);
            for (int c = 0; c < C; ++c) add_squares(rows + c * plane, part, W, squares);
            longest[y] = std::sqrt(*std::max_element(squares, squares + W)) / part;
        });
        const float most = *std::max_element(largest.begin(), largest.end());
        const float length = *std::max_element(longest.begin(), longest.end());
        // 46000 squared stays below 2^31, with room for the rounding of a thousand channels.
        const float largest_scale = bits == 16 ? std::min(32767 / most, 46000 / length) : 127 / most;
        if (std::isfinite(largest_scale) && largest_scale > 0) scale = largest_scale;
        const float limit = bits == 16 ? 32767 : 127;
        const std::int32_t excess = bits == 16 ? 0 : 128;
        const std::uint32_t mask = bits == 16 ? 0xffffu : 0xffu;
        const std::vector<float> zeros(W, 0.0f);  // padding channels
        in_parallel(threads, H, 1, [&](int y, void*) {
            for (int d = 0; d < depth; ++d) {
                std::uint32_t* row = to + d * plane + std::size_t(y) * W;
                std::fill(row, row + W, 0u);
                for (int i = 0; i < share; ++i) {
                    const int c = d * share + i;
                    const float* own = c < C ? from + c * plane + std::size_t(y) * W : zeros.data();
                    add_channel(own, scale, limit, excess, mask, i * bits, W, row);
                }
            }
        });
    }
    return scale;
}

// Compute the op without a batch axis: query [C, H, W] float32, keys [K, C, H, W] float32 or float16, or both packed:
// query [depth, H, W], keys [K, depth, H, W] int32 of 16 or 8 bits. values [K, N, H, W] float32. For each of the M search
// windows: (frame, dy, dx), radius, dilation, and the factor from the sum of products to the score.
FloatArray copy(const py::array& query, const py::array& keys, const FloatArray& values,
                const std::vector<std::array<int, 3>>& references, const std::vector<int>& radius,
                const std::vector<int>& dilation, int top_k, const std::vector<float>& scales, int bits, int threads,
                const std::string& kernel_name) {
    if (query.ndim() != 3 || values.ndim() != 4) throw std::invalid_argument("query [C, H, W] and values [K, N, H, W]");
    const py::ssize_t K = values.shape(0), N = values.shape(1), M = py::ssize_t(references.size());
    const py::ssize_t C = query.shape(0), H = query.shape(1), W = query.shape(2);
    expect(query, {C, H, W}, "query");
    expect(keys, {K, C, H, W}, "keys");
    expect(values, {K, N, H, W}, "values");
    const bool half = keys.dtype().kind() == 'f' && keys.itemsize() == 2;
    Dtype dtype = half ? Dtype::Float16 : Dtype::Float32;
    if (bits == 16 || bits == 8) {
        dtype = bits == 16 ? Dtype::Int16 : Dtype::UInt8;
        if (!py::isinstance<WordArray>(query) || !py::isinstance<WordArray>(keys))
            throw std::invalid_argument("packed query and keys of int32");
    } else if (bits || !py::isinstance<FloatArray>(query) || !(half || py::isinstance<FloatArray>(keys))) {
        throw std::invalid_argument("query of float32, keys of float32 or float16");
    }
    // Positions beside the frame, up to an offset and a window away, are counted as well.
    if (std::min({M, N, C, H, W}) < 1 || H > 1 << 20 || W > 1 << 20 || M > 1 << 20 ||
        M * H * W > std::numeric_limits<std::int32_t>::max() - 4 * (1 << 20))
        throw std::invalid_argument("sizes of at least 1, and not more cells than an int32 can count");
    if (radius.size() != std::size_t(M) || dilation.size() != radius.size() || scales.size() != radius.size())
        throw std::invalid_argument("one radius, one dilation and one scale for each search window");
    if (top_k < 0) throw std::invalid_argument("top_k >= 0");

    std::vector<SearchWindow> windows;
    std::vector<int> frames;  // that are searched
    std::vector<unsigned char> marks(std::size_t(K) * H * corrflow::groups(int(W)));
    std::int64_t positions = 0;
    for (py::ssize_t m = 0; m < M; ++m) {
        const auto [frame, dy, dx] = references[m];
        if (radius[m] < 0 || radius[m] > MAX_OFFSET || dilation[m] < 1 || dilation[m] > MAX_OFFSET)
            throw std::invalid_argument("radius from 0 and dilation from 1 to 65536");
        if (frame < 0 || frame >= K) throw std::invalid_argument("frames below K");
        if (std::abs(dy) > MAX_OFFSET || std::abs(dx) > MAX_OFFSET) throw std::invalid_argument("offsets of 65536 at most");
        const std::int64_t across = std::min<std::int64_t>(radius[m], (W - 1 + std::abs(dx)) / dilation[m]);
        const std::int64_t along = std::min<std::int64_t>(radius[m], (H - 1 + std::abs(dy)) / dilation[m]);
        positions += std::min<std::int64_t>((2 * across + 1) * (2 * along + 1), H * W);
        windows.push_back({static_cast<const char*>(keys.data()) + frame * C * H * W * keys.itemsize(),
                           values.data() + frame * N * H * W,
                           marks.data() + std::size_t(frame) * H * corrflow::groups(int(W)), radius[m], dilation[m], dy,
                           dx, scales[m]});
        if (std::find(frames.begin(), frames.end(), frame) == frames.end()) frames.push_back(frame);
    }
    FloatArray copied({N, H, W});
    Job job{};
    job.query = query.data();
    job.windows = windows.data();
    job.num_windows = int(M), job.depth = int(C), job.N = int(N), job.H = int(H), job.W = int(W);
    job.dtype = dtype;
    job.top_k = static_cast<int>(std::min<std::int64_t>(top_k, positions));
    job.copied = copied.mutable_data();
    const Kernel& kernel = kernel_named(kernel_name);
    const auto divided = [](int a, int b) { return (a + b - 1) / b; };
    const int panels = divided(job.W, kernel.columns);
    // At least two tasks for each thread, unless tasks become too small.
    const int parts = std::max(divided(job.H, MOST_ROWS),
                               std::min(divided(2 * threads, panels), divided(job.H, LEAST_ROWS)));
    const int rows_per_part = divided(job.H, parts);
    {
        py::gil_scoped_release release;
        in_parallel(threads, int(frames.size()), 1, [&](int i, void*) {
            const float* frame = values.data() + frames[i] * N * H * W;
            unsigned char* own = marks.data() + std::size_t(frames[i]) * H * corrflow::groups(int(W));
            for (int y = 0; y < job.H; ++y) corrflow::mark_row(frame, job.N, job.H, job.W, y, own);
        });
        const std::size_t bytes = kernel.scratch(job, rows_per_part);
        in_parallel(threads, panels * parts, bytes, [&](int task, void* scratch) {
            const int row = task % parts * rows_per_part;
            const int rows = std::min(rows_per_part, job.H - row);
            if (rows > 0) kernel.panel(job, task / parts * kernel.columns, row, rows, scratch);
        });
    }
    return copied;
}

}  // namespace

PYBIND11_MODULE(_fused, module) {
    module.def("kernels", [] {
        py::list names;
        for (const Kernel* kernel : kernels_here()) names.append(kernel->name);
        return names;
    });
    module.def("pack", &pack, py::arg("features").noconvert(), py::arg("bits"), py::arg("words").noconvert(),
               py::arg("threads"));
    module.def("copy", &copy, py::arg("query"), py::arg("keys"), py::arg("values").noconvert(), py::arg("references"),
               py::arg("radius"), py::arg("dilation"), py::arg("top_k"), py::arg("scales"), py::arg("bits"), py::arg("threads"),
               py::arg("kernel"));
}
