// Resize a frame to its working size: each pixel of the result is the mean of the area that it covers. One thread
// computes the three colours of a pixel. The arithmetic is in integers, so the result is the same everywhere; OpenCV's
// INTER_AREA on the CPU differs by at most one grey level.
//
// The source includes no header, so NVRTC needs no include path; cuda_resize.py launches it.
#ifndef __CUDACC__
#include "cuda_words_on_cpu.h"  // tests run this source on the CPU
#endif

namespace {

constexpr int THREADS = 256;
constexpr int COLOURS = 3;

// Part of `length` pixels that pixel `index` of `count` pixels covers, in units of 1 / (length * count).
struct Cover {
    int begin, end, pieces;  // a pixel of the frame has `pieces` units

    __device__ Cover(int index, int length, int count)
        : begin(index * length), end((index + 1) * length), pieces(count) {}

    __device__ int first() const { return begin / pieces; }
    __device__ int last() const { return (end - 1) / pieces; }
    __device__ unsigned weight(int pixel) const {
        return min(end, (pixel + 1) * pieces) - max(begin, pixel * pieces);
    }
};

}  // namespace

// frame [height, width, 3], resized [rows, columns, 3]; no side of `resized` is longer than the side of the frame.
extern "C" __global__ void __launch_bounds__(THREADS, 1)
    corrflow_resize(const unsigned char* frame, int height, int width, int rows, int columns, unsigned char* resized) {
    const int pixel = blockIdx.x * THREADS + threadIdx.x;
    if (pixel >= rows * columns) return;
    const Cover down(pixel / columns, height, rows), across(pixel % columns, width, columns);
    unsigned long long sums[COLOURS] = {0, 0, 0};
    for (int y = down.first(); y <= down.last(); ++y) {
        const unsigned char* line = frame + y * width * COLOURS;
        unsigned row[COLOURS] = {0, 0, 0};  // at most 255 * width
        for (int x = across.first(); x <= across.last(); ++x) {
            const unsigned weight = across.weight(x);
            for (int colour = 0; colour < COLOURS; ++colour) row[colour] += weight * line[x * COLOURS + colour];
        }
        const unsigned weight = down.weight(y);
        for (int colour = 0; colour < COLOURS; ++colour) sums[colour] += (unsigned long long)weight * row[colour];
    }
    const unsigned long long whole = (unsigned long long)height * width;
    for (int colour = 0; colour < COLOURS; ++colour)
        resized[pixel * COLOURS + colour] = (unsigned char)((sums[colour] + whole / 2) / whole);
}
