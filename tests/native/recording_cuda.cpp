// A libcuda.so.1 for tests: prints each call that the plugin library makes, in order, and succeeds.
//
// RECORDED_GPU is the compute capability of the device, such as 87; 87 without it. RECORDED_REFUSAL=1 makes it refuse
// every cubin, as a driver does that has no code for the device in it.
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>

namespace {

using Status = int;
constexpr Status SUCCESS = 0, NO_BINARY_FOR_GPU = 209;
int libraries = 0;

bool is_cubin(const void* image) { return !std::memcmp(image, "\x7f" "ELF", 4); }

}  // namespace

extern "C" {

Status cuCtxGetDevice(int* device) {
    *device = 3;
    return SUCCESS;
}

Status cuDeviceGetAttribute(int* value, int attribute, int device) {
    const char* gpu = std::getenv("RECORDED_GPU");
    const int number = gpu ? std::atoi(gpu) : 87;
    *value = attribute == 75 ? number / 10 : number % 10;
    return device == 3 ? SUCCESS : 101;
}

Status cuLibraryLoadData(void** library, const void* image, void*, void*, unsigned options, void*, void*,
                         unsigned library_options) {
    const bool cubin = is_cubin(image);
    std::printf("cuLibraryLoadData: %s, options %u %u\n", cubin ? "cubin" : "PTX", options, library_options);
    if (!cubin) {
        const char* version = std::strstr(static_cast<const char*>(image), ".version");
        std::printf("PTX: %.12s\n", version ? version : "without a version");
    }
    if (cubin && std::getenv("RECORDED_REFUSAL")) return NO_BINARY_FOR_GPU;
    *library = reinterpret_cast<void*>(static_cast<intptr_t>(++libraries));
    return SUCCESS;
}

Status cuLibraryGetKernel(void** kernel, void* library, const char* name) {
    std::printf("cuLibraryGetKernel: %s of library %d\n", name, static_cast<int>(reinterpret_cast<intptr_t>(library)));
    *kernel = reinterpret_cast<void*>(intptr_t{1000} + libraries);
    return SUCCESS;
}

Status cuKernelGetFunction(void** function, void* kernel) {
    std::printf("cuKernelGetFunction: %d\n", static_cast<int>(reinterpret_cast<intptr_t>(kernel)));
    *function = kernel;
    return SUCCESS;
}

Status cuLaunchKernel(void* function, unsigned grid_x, unsigned grid_y, unsigned grid_z, unsigned block_x,
                      unsigned block_y, unsigned block_z, unsigned shared, void* stream, void** arguments,
                      void** extra) {
    std::printf("cuLaunchKernel: %d grid %u %u %u block %u %u %u shared %u stream %d extra %d arguments",
                static_cast<int>(reinterpret_cast<intptr_t>(function)), grid_x, grid_y, grid_z, block_x, block_y,
                block_z, shared, static_cast<int>(reinterpret_cast<intptr_t>(stream)), extra != nullptr);
    // The kernel's parameters: four pointers, four 32-bit integers, a pointer.
    for (int i = 0; i < 9; ++i) {
        const bool integer = 4 <= i && i < 8;
        std::printf(" %d", integer ? *static_cast<int32_t*>(arguments[i])
                                   : static_cast<int>(*static_cast<intptr_t*>(arguments[i])));
    }
    std::printf("\n");
    return SUCCESS;
}

Status cuGetErrorString(Status, const char** text) {
    *text = "recorded failure";
    return SUCCESS;
}

}  // extern "C"
