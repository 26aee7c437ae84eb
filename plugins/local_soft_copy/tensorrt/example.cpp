// Track one step in C++ with engines of `corrflow-export engine --precision fp32`, built with the plugin library:
//
//     example libcorrflow_trt.so MODEL/engines first.bgr second.bgr first.mask second.masks
//
// Frames are raw pixels, H x W x 3 bytes, BGR; first.mask has h x w floats, one for each cell; H and W are the frame of
// engines.json, h and w a quarter of them. The result has N x h x w floats: channel 0 is the object, 1 everything else.
//
//     g++ -std=c++17 example.cpp -I/usr/local/cuda/include -L/usr/local/cuda/lib64 -lnvinfer -lcudart
#include <NvInfer.h>
#include <cuda_runtime_api.h>

#include <fstream>
#include <iostream>
#include <iterator>
#include <map>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

struct Log : nvinfer1::ILogger {
    void log(Severity severity, char const* text) noexcept override {
        if (severity <= Severity::kWARNING) std::cerr << text << '\n';
    }
} logger;

std::vector<char> read(std::string const& path) {
    std::ifstream file(path, std::ios::binary);
    if (!file) throw std::runtime_error("expected a readable file, got " + path);
    return {std::istreambuf_iterator<char>(file), {}};
}

struct Engine {
    std::unique_ptr<nvinfer1::ICudaEngine> engine;
    std::unique_ptr<nvinfer1::IExecutionContext> context;
    std::map<std::string, std::pair<void*, size_t>> tensors;  // address and bytes

    Engine(nvinfer1::IRuntime& runtime, std::string const& path) {
        auto const content = read(path);
        engine.reset(runtime.deserializeCudaEngine(content.data(), content.size()));
        if (!engine) throw std::runtime_error("TensorRT refuses " + path + "; build it on this device");
        context.reset(engine->createExecutionContext());
        for (int i = 0; i < engine->getNbIOTensors(); ++i) {
            char const* const name = engine->getIOTensorName(i);
            auto const shape = engine->getTensorShape(name);
            size_t bytes = engine->getTensorDataType(name) == nvinfer1::DataType::kUINT8 ? 1 : 4;
            for (int axis = 0; axis < shape.nbDims; ++axis) bytes *= shape.d[axis];
            void* address = nullptr;
            cudaMalloc(&address, bytes);
            cudaMemset(address, 0, bytes);
            context->setTensorAddress(name, address);
            tensors[name] = {address, bytes};
        }
    }
    void run() { context->enqueueV3(nullptr), cudaStreamSynchronize(nullptr); }
};

int main(int, char** arguments) try {
    std::unique_ptr<nvinfer1::IRuntime> runtime(nvinfer1::createInferRuntime(logger));
    if (!runtime || !runtime->getPluginRegistry().loadLibrary(arguments[1])) return 1;
    std::string const folder = arguments[2];
    Engine encode(*runtime, folder + "/encode.engine"), propagate(*runtime, folder + "/propagate.engine");
    auto& [features, feature_bytes] = encode.tensors.at("features");
    auto upload = [&](char const* path) {
        auto const frame = read(path);
        if (frame.size() != encode.tensors["frame"].second) throw std::runtime_error("expected frames of another size");
        cudaMemcpy(encode.tensors["frame"].first, frame.data(), frame.size(), cudaMemcpyHostToDevice);
        encode.run();
    };
    upload(arguments[3]);  // the reference frame, and its mask in slot 0 of the memory
    cudaMemcpy(propagate.tensors.at("keys").first, features, feature_bytes, cudaMemcpyDeviceToDevice);
    auto mask = read(arguments[5]);
    auto* const object = static_cast<char*>(propagate.tensors.at("values").first);
    cudaMemcpy(object, mask.data(), mask.size(), cudaMemcpyHostToDevice);
    auto* const cells = reinterpret_cast<float*>(mask.data());
    for (size_t i = 0; i < mask.size() / 4; ++i) cells[i] = 1 - cells[i];
    cudaMemcpy(object + mask.size(), mask.data(), mask.size(), cudaMemcpyHostToDevice);
    auto& [references, row_bytes] = propagate.tensors.at("references");
    std::vector<int> rows(row_bytes / 4, 0);  // frame, window, dy, dx
    for (size_t i = 4; i < rows.size(); i += 4) rows[i] = -1;  // unused
    cudaMemcpy(references, rows.data(), row_bytes, cudaMemcpyHostToDevice);

    upload(arguments[4]);  // the frame to track
    cudaMemcpy(propagate.tensors.at("query").first, features, feature_bytes, cudaMemcpyDeviceToDevice);
    propagate.run();
    std::vector<char> result(propagate.tensors.at("labels").second);
    cudaMemcpy(result.data(), propagate.tensors["labels"].first, result.size(), cudaMemcpyDeviceToHost);
    std::ofstream(arguments[6], std::ios::binary).write(result.data(), result.size());
    return 0;
} catch (std::exception const& error) {
    std::cerr << error.what() << '\n';
    return 1;
}
