// What the binding hands to a kernel, and the kernels there are: the same source compiled for several instruction sets.
#pragma once
#include <cstddef>

namespace corrflow {

struct Reference {
    const void* keys;     // [C][H][W] float, or half
    const float* values;  // [N][H][W]
    int radius, dilation;
};

struct Job {
    const float* query;  // [C][H][W]
    const Reference* references;
    int K, C, N, H, W;
    bool half_keys;
    int top_k;      // 0 keeps every score
    float scale;    // 1 / temperature
    float* copied;  // [N][H][W]
};

struct Kernel {
    const char* name;
    int columns;  // of a panel, which is what a thread computes at a time
    // Bytes of scratch for a call of panel with that many rows.
    std::size_t (*scratch)(const Job&, int rows);
    // Rows first_row .. first_row + rows - 1 of the query columns column .. column + columns - 1.
    void (*panel)(const Job&, int column, int first_row, int rows, void* scratch);
};

extern const Kernel portable_kernel;
#ifdef CORRFLOW_X86_KERNELS
extern const Kernel avx2_kernel;
extern const Kernel avx512_kernel;
#endif

}  // namespace corrflow
