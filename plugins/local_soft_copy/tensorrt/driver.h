// The CUDA driver, opened when a kernel is first needed: the library loads on machines without one.
#pragma once

#include <cstddef>
#include <string>

#include "kernels.h"

namespace corrflow {

struct Grid {
    unsigned x, y, z;
};

// Load a kernel for the GPU of the current context, once per GPU architecture and process.
// Returns the kernel, or nullptr and a reason.
void* load_kernel(const Kernel& kernel, std::string& reason);

// Put a launch on a stream. arguments: pointers to the arguments in the kernel's order.
bool launch(void* loaded, Grid grid, unsigned threads, void* stream, void** arguments, std::string& reason);

// Choose the image for a GPU such as 87: its own, that of an older GPU whose code it runs, or PTX. nullptr if none.
const Image* choose_image(const Kernel& kernel, int architecture);

}  // namespace corrflow
