#include "driver.h"

#include <dlfcn.h>

#include <map>
#include <mutex>
#include <utility>

namespace corrflow {
namespace {

// The driver's interface, as far as it is used: cuda.h is not needed to build.
using Status = int;
constexpr Status SUCCESS = 0, NO_BINARY_FOR_GPU = 209;
constexpr int COMPUTE_CAPABILITY_MAJOR = 75, COMPUTE_CAPABILITY_MINOR = 76;  // CUdevice_attribute

struct Driver {
    Status (*get_device)(int*);
    Status (*get_attribute)(int*, int, int);
    Status (*load_library)(void**, const void*, void*, void*, unsigned, void*, void*, unsigned);
    Status (*get_kernel)(void**, void*, const char*);
    Status (*get_function)(void**, void*);
    Status (*launch)(void*, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, void*, void**, void**);
    Status (*describe)(Status, const char**);
    std::string missing;  // reason why the driver cannot be used
};

Driver open_driver() {
    Driver driver{};
    void* library = dlopen("libcuda.so.1", RTLD_NOW | RTLD_LOCAL);
    if (!library) {
        driver.missing = "expected NVIDIA's driver (libcuda.so.1), found none; run this on a machine with an NVIDIA GPU";
        return driver;
    }
    const std::pair<void**, const char*> functions[] = {
        {reinterpret_cast<void**>(&driver.get_device), "cuCtxGetDevice"},
        {reinterpret_cast<void**>(&driver.get_attribute), "cuDeviceGetAttribute"},
        {reinterpret_cast<void**>(&driver.load_library), "cuLibraryLoadData"},
        {reinterpret_cast<void**>(&driver.get_kernel), "cuLibraryGetKernel"},
        {reinterpret_cast<void**>(&driver.get_function), "cuKernelGetFunction"},
        {reinterpret_cast<void**>(&driver.launch), "cuLaunchKernel"},
        {reinterpret_cast<void**>(&driver.describe), "cuGetErrorString"},
    };
    for (const auto& [function, name] : functions) {
        *function = dlsym(library, name);
        if (!*function)
            driver.missing = std::string("expected a driver for CUDA 12.0 or later, got one without ") + name +
                             "; update the driver";
    }
    return driver;
}

const Driver& driver() {
    static const Driver opened = open_driver();
    return opened;
}

std::string failure(const char* call, Status status) {
    const char* text = nullptr;
    driver().describe(status, &text);
    return std::string(call) + " failed: " + (text ? text : "unknown error") + " (" + std::to_string(status) + ")";
}

void* load_image(const Image& image, Status& status) {
    void *library = nullptr, *kernel = nullptr, *function = nullptr;
    status = driver().load_library(&library, image.begin, nullptr, nullptr, 0, nullptr, nullptr, 0);
    if (status == SUCCESS) status = driver().get_kernel(&kernel, library, ENTRY_POINT);
    // Loads the code now: the first launch may be within a capture, which allows no loading.
    if (status == SUCCESS) status = driver().get_function(&function, kernel);
    return status == SUCCESS ? kernel : nullptr;
}

}  // namespace

const Image* choose_image(const Kernel& kernel, int architecture) {
    const Image *best = nullptr, *ptx = nullptr;
    const auto embedded = [](int gpu) { return gpu == 87 || gpu == 88; };  // share no code with desktop GPUs
    for (int i = 0; i < kernel.num_images; ++i) {
        const Image& image = kernel.images[i];
        if (image.architecture == architecture) return &image;
        if (image.architecture == 0) {
            ptx = &image;
        } else if (image.architecture / 10 == architecture / 10 && image.architecture < architecture &&
                   !embedded(image.architecture) && !embedded(architecture)) {
            if (!best || image.architecture > best->architecture) best = &image;
        }
    }
    return best ? best : ptx;
}

void* load_kernel(const Kernel& kernel, std::string& reason) {
    if (!driver().missing.empty()) return reason = driver().missing, nullptr;
    int device = 0, major = 0, minor = 0;
    Status status = driver().get_device(&device);
    if (status != SUCCESS) return reason = failure("cuCtxGetDevice", status), nullptr;
    status = driver().get_attribute(&major, COMPUTE_CAPABILITY_MAJOR, device);
    if (status == SUCCESS) status = driver().get_attribute(&minor, COMPUTE_CAPABILITY_MINOR, device);
    if (status != SUCCESS) return reason = failure("cuDeviceGetAttribute", status), nullptr;
    const int architecture = 10 * major + minor;

    static std::mutex mutex;
    static std::map<std::pair<const Kernel*, int>, void*> loaded;
    const std::lock_guard<std::mutex> lock(mutex);
    void*& entry = loaded[{&kernel, architecture}];
    if (entry) return entry;
    const Image* image = choose_image(kernel, architecture);
    if (!image) {
        reason = "expected an image for sm_" + std::to_string(architecture) +
                 ", this library has none; build it with -DCORRFLOW_ARCHITECTURES=" + std::to_string(architecture);
        return nullptr;
    }
    entry = load_image(*image, status);
    if (status == NO_BINARY_FOR_GPU && image->architecture != 0) {
        for (int i = 0; i < kernel.num_images; ++i)
            if (kernel.images[i].architecture == 0) entry = load_image(kernel.images[i], status);
    }
    if (!entry) reason = failure("cuLibraryLoadData", status);
    return entry;
}

bool launch(void* loaded, Grid grid, unsigned threads, void* stream, void** arguments, std::string& reason) {
    const Status status =
        driver().launch(loaded, grid.x, grid.y, grid.z, threads, 1, 1, 0, stream, arguments, nullptr);
    if (status != SUCCESS) reason = failure("cuLaunchKernel", status);
    return status == SUCCESS;
}

}  // namespace corrflow
