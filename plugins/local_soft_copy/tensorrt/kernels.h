// Kernels in this library: variants.py writes their table, and CMake compiles and embeds them.
#pragma once

#include <cstdint>

namespace corrflow {

struct Window {
    int32_t radius;
    int32_t dilation;
};

struct Image {
    int32_t architecture;        // for example 87; 0 is PTX, for GPUs without an image of their own
    const unsigned char* begin;  // cubin, or PTX that ends in a zero byte
};

// A kernel is compiled for these channels, classes, windows, top_k, temperature and type; see cuda/launch.py.
struct Kernel {
    int32_t channels;
    int32_t classes;
    int32_t type;  // nvinfer1::DataType
    int32_t top_k;
    float temperature;
    int32_t min_windows;  // with fewer rows of references, top_k covers all scores, and the kernel is another
    int32_t num_windows;
    const Window* windows;
    int32_t tile_columns, tile_rows;
    int32_t class_blocks;
    int32_t threads;
    int32_t num_images;
    const Image* images;
};

extern const Kernel KERNELS[];
extern const int32_t NUM_KERNELS;
extern const char ENTRY_POINT[];
extern const char KERNEL_HASH[];  // SHA-256 of local_soft_copy.cu, as in engines.json

}  // namespace corrflow
