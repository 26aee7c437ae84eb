// What the binding hands to a kernel, and the kernels there are: the same source compiled for several instruction sets.
#pragma once
#include <cstddef>

namespace corrflow {

// How features are stored. PackedFeatures ones are 32-bit words [depth][H][W]: two channels of 16 bits in each, or four of 8.
// Eight bits stand 128 higher than the number they mean, so that they are unsigned. Channels that only fill up are zero.
enum class Storage { Float, Half, Sixteen, Eight };

struct SearchWindow {
    const void* keys;     // [depth][H][W] of the job's storage
    const float* values;  // [N][H][W]
    int radius, dilation;
    int down, right;  // how far its window is moved, in cells
    float scale;      // what the sum of products is multiplied by to be the score
};

struct Job {
    const void* query;  // [depth][H][W]: float for keys of Float and Half, otherwise of the same storage as they
    const SearchWindow* references;
    int K, depth, N, H, W;
    Storage storage;
    int top_k;      // 0 keeps every score
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
extern const Kernel avx512_vnni_kernel;
#endif

}  // namespace corrflow
