// Interface between the binding and the kernels: one source, compiled for several instruction sets.
#pragma once
#include <cstddef>
#include <vector>

namespace corrflow {

// Number type of features. Int16 and UInt8 are packed into 32-bit words [depth][H][W], two or four channels in each.
// UInt8 stores the number plus 128. Padding channels are zero.
enum class Dtype { Float32, Float16, Int16, UInt8 };

// A search window in one reference frame.
struct SearchWindow {
    const void* keys;     // [depth][H][W] of the job's dtype
    const float* values;  // [N][H][W]
    const unsigned char* marks;  // of `values`, [H][groups(W)]
    int radius, dilation;
    int dy, dx;   // offset of the window in cells
    float scale;  // factor from the sum of products to the score
};

// Columns that share a mark: 1 if a value of any channel is not 0 there, otherwise 0.
constexpr int GROUP = 16;
inline int groups(int W) { return (W + GROUP - 1) / GROUP; }

// Mark row y of values [N][H][W] in marks [H][groups(W)].
void mark_row(const float* values, int N, int H, int W, int y, unsigned char* marks);

struct Job {
    const void* query;  // [depth][H][W]: float for Float32 and Float16 keys, otherwise of the dtype of the keys
    const SearchWindow* windows;
    int num_windows, depth, N, H, W;
    Dtype dtype;
    int top_k;      // 0 keeps all scores
    float* copied;  // [N][H][W]
};

struct Kernel {
    const char* name;
    int columns;  // width of a panel, the unit of work of a thread
    // Bytes of scratch memory for a panel with this number of rows.
    std::size_t (*scratch)(const Job&, int rows);
    // Compute rows first_row .. first_row + rows - 1 of the query columns column .. column + columns - 1.
    void (*panel)(const Job&, int column, int first_row, int rows, void* scratch);
};

// A macro says of each further kernel that it was compiled: CORRFLOW_AVX2 and so on.
extern const Kernel portable_kernel, avx2_kernel, avx_vnni_kernel, avx512_kernel, avx512_vnni_kernel, neon_dotprod_kernel;

// Return the kernels that this processor can run, fastest first.
std::vector<const Kernel*> kernels_here();

}  // namespace corrflow
