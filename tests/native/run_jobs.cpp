// Run jobs of LocalSoftCopy from files: run_jobs KERNEL ROUNDS JOB RESULT [JOB RESULT]...
//
// Prints the names of the processor's kernels, then the best time of each job in milliseconds on one thread. A job is a
// file of int32: number type, frames, depth, N, H, W, top_k and number of windows; of each window frame, radius,
// dilation, dy, dx and the bits of its scale; then query [depth][H][W], keys [frames][depth][H][W] and values
// [frames][N][H][W]. A result is [N][H][W] float32. helpers/kernel_jobs.py writes and reads both.
#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <iterator>
#include <memory>
#include <string>
#include <vector>

#include "kernel.h"

using corrflow::Dtype;
using corrflow::Job;
using corrflow::Kernel;
using corrflow::SearchWindow;

namespace {

constexpr int MOST_ROWS = 64;  // per task, as in module.cpp

struct Free {
    void operator()(void* memory) const { std::free(memory); }
};

// Not only those of this processor: instructions may be emulated.
const Kernel* const compiled[] = {
    &corrflow::portable_kernel,
#ifdef CORRFLOW_AVX2
    &corrflow::avx2_kernel,
#endif
#ifdef CORRFLOW_AVX_VNNI
    &corrflow::avx_vnni_kernel,
#endif
#ifdef CORRFLOW_AVX512
    &corrflow::avx512_kernel,
#endif
#ifdef CORRFLOW_AVX512_VNNI
    &corrflow::avx512_vnni_kernel,
#endif
#ifdef CORRFLOW_NEON_DOTPROD
    &corrflow::neon_dotprod_kernel,
#endif
};

double run(const Job& job, const Kernel& kernel) {
    const int rows_per_part = std::min(job.H, MOST_ROWS);
    const std::size_t bytes = (kernel.scratch(job, rows_per_part) + 63) / 64 * 64;
    std::unique_ptr<void, Free> scratch(std::aligned_alloc(64, bytes));
    const auto start = std::chrono::steady_clock::now();
    for (int column = 0; column < job.W; column += kernel.columns)
        for (int row = 0; row < job.H; row += rows_per_part)
            kernel.panel(job, column, row, std::min(rows_per_part, job.H - row), scratch.get());
    return std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - start).count();
}

double run_file(const char* from, const char* to, const Kernel& kernel, int rounds) {
    std::ifstream file(from, std::ios::binary);
    const std::vector<char> bytes((std::istreambuf_iterator<char>(file)), std::istreambuf_iterator<char>());
    std::vector<std::int32_t> words(bytes.size() / 4);
    std::memcpy(words.data(), bytes.data(), words.size() * 4);
    const std::int32_t* at = words.data();
    Job job{};
    job.dtype = static_cast<Dtype>(*at++);
    const int frames = *at++;
    job.depth = *at++, job.N = *at++, job.H = *at++, job.W = *at++, job.top_k = *at++, job.num_windows = *at++;
    const std::size_t cells = std::size_t(job.H) * job.W, half = job.dtype == Dtype::Float16;
    const std::size_t of_frame = job.depth * cells >> half;  // words
    const std::int32_t* const query = at + 6 * job.num_windows;
    const std::int32_t* const keys = query + job.depth * cells;
    const std::int32_t* const values = keys + frames * of_frame;
    const int marks_of_frame = job.H * corrflow::groups(job.W);
    std::vector<unsigned char> marks(std::size_t(frames) * marks_of_frame);
    for (int frame = 0; frame < frames; ++frame)
        for (int y = 0; y < job.H; ++y)
            corrflow::mark_row(reinterpret_cast<const float*>(values) + frame * job.N * cells, job.N, job.H, job.W, y,
                               marks.data() + frame * marks_of_frame);
    std::vector<SearchWindow> windows(job.num_windows);
    for (SearchWindow& window : windows) {
        const int frame = *at++;
        window.keys = keys + frame * of_frame;
        window.values = reinterpret_cast<const float*>(values) + frame * job.N * cells;
        window.marks = marks.data() + frame * marks_of_frame;
        window.radius = *at++, window.dilation = *at++, window.dy = *at++, window.dx = *at++;
        std::memcpy(&window.scale, at++, 4);
    }
    std::vector<float> copied(job.N * cells);
    job.query = query, job.windows = windows.data(), job.copied = copied.data();
    double best = run(job, kernel);
    for (int i = 1; i < rounds; ++i) best = std::min(best, run(job, kernel));
    std::ofstream(to, std::ios::binary).write(reinterpret_cast<const char*>(copied.data()), copied.size() * 4);
    return best;
}

}  // namespace

int main(int count, char** arguments) {
    const Kernel* chosen = nullptr;
    for (const Kernel* kernel : corrflow::kernels_here()) std::printf("%s ", kernel->name);
    std::printf("\n");
    for (const Kernel* kernel : compiled)
        if (count > 1 && std::string(arguments[1]) == kernel->name) chosen = kernel;
    if (count < 5 || count % 2 == 0 || !chosen)
        return std::fprintf(stderr, "usage: run_jobs KERNEL ROUNDS JOB RESULT [JOB RESULT]...\n"), 2;
    for (int i = 3; i < count; i += 2)
        std::printf("%.3f\n", run_file(arguments[i], arguments[i + 1], *chosen, std::atoi(arguments[2])));
    return 0;
}
