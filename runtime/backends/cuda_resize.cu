// A frame shrunk to the size that it is tracked at: each pixel of the result is the mean of the part of the frame that
// it covers. One thread computes one pixel in its three colours. Everything is counted in whole numbers, so that the
// result is the same everywhere; OpenCV's INTER_AREA, which does this on the CPU, rounds by one grey level otherwise.
//
// It includes no header, so that NVRTC needs no include path; shrink.py launches it.
#ifndef __CUDACC__
#include "cuda_words_on_cpu.h"  // the tests run this source on the CPU
#endif

namespace {

constexpr int THREADS = 256;
constexpr int COLOURS = 3;

// What pixel `index` of `shrunk` covers of `length` pixels. Both are cut into the same length * shrunk pieces.
struct Cover {
    int begin, end, pieces;  // in pieces; a pixel of the frame has `pieces` of them

    __device__ Cover(int index, int length, int shrunk)
        : begin(index * length), end((index + 1) * length), pieces(shrunk) {}

    __device__ int first() const { return begin / pieces; }
    __device__ int last() const { return (end - 1) / pieces; }
    __device__ unsigned weight(int pixel) const {
        return min(end, (pixel + 1) * pieces) - max(begin, pixel * pieces);
    }
};

}  // namespace

// frame [height, width, 3], shrunk [rows, columns, 3]; no side of `shrunk` is longer than the frame's.
extern "C" __global__ void __launch_bounds__(THREADS, 1)
    corrflow_shrink(const unsigned char* frame, int height, int width, int rows, int columns, unsigned char* shrunk) {
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
        shrunk[pixel * COLOURS + colour] = (unsigned char)((sums[colour] + whole / 2) / whole);
}
