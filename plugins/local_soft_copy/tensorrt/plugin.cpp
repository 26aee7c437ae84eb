// LocalSoftCopy (spec.py) as a TensorRT plugin, IPluginV3, for TensorRT 10.3 to 11 without Python.
//
// Name, namespace, version and fields are those of tensorrt_plugin.py, so engines can be exchanged. The kernels are
// embedded; a plugin finds its own when shapes are known, and loads and launches it through the driver.
//
// The creator reaches TensorRT in two ways. The library registers it when it is loaded beside libnvinfer, as trtexec's
// --staticPlugins, DeepStream and Triton load it. `getCreators` returns it to IPluginRegistry::loadLibrary.
#include <NvInfer.h>

#include <dlfcn.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <string>
#include <utility>
#include <vector>

#include "driver.h"
#include "kernels.h"

#define CORRFLOW_PUBLIC extern "C" __attribute__((visibility("default")))

namespace corrflow {
namespace {

using namespace nvinfer1;

constexpr char NAME[] = "LocalSoftCopy", VERSION[] = "1", NAMESPACE[] = "corrflow";
constexpr int32_t QUERY = 0, KEYS = 1, VALUES = 2, REFERENCES = 3, COPIED = 4, NUM_INPUTS = 4;
constexpr int64_t MAX_RADIUS = 65536, MAX_TOP_K = 4096, MAX_GRID = 65535;

ILoggerFinder* logger_finder = nullptr;

// Report an error to TensorRT's logger, or where it gave none, on standard error.
void complain(const std::string& reason) {
    const std::string message = std::string(NAME) + ": " + reason;
    ILogger* const logger = logger_finder ? logger_finder->findLogger() : nullptr;
    if (logger)
        logger->log(ILogger::Severity::kERROR, message.c_str());
    else
        std::fprintf(stderr, "%s\n", message.c_str());
}

struct Attributes {
    std::vector<int32_t> radius{6}, dilation{1};
    int32_t top_k = 0;
    float temperature = 1.0f;

    // Windows for which a kernel is compiled: a single one if all are alike; `distinct_windows` of spec.py.
    std::vector<Window> windows() const {
        const auto alike = [](const std::vector<int32_t>& values) {
            return std::all_of(values.begin(), values.end(), [&](int32_t value) { return value == values[0]; });
        };
        std::vector<Window> all;
        const size_t count = alike(radius) && alike(dilation) ? 1 : std::max(radius.size(), dilation.size());
        for (size_t i = 0; i < count; ++i)
            all.push_back({radius[std::min(i, radius.size() - 1)], dilation[std::min(i, dilation.size() - 1)]});
        return all;
    }
};

template <class T>
std::vector<double> numbers_of(const PluginField& field) {
    const T* data = static_cast<const T*>(field.data);
    return std::vector<double>(data, data + std::max(field.length, 0));
}

std::vector<double> numbers(const PluginField& field) {
    if (!field.data) return {};
    switch (field.type) {
        case PluginFieldType::kINT8: return numbers_of<int8_t>(field);
        case PluginFieldType::kINT16: return numbers_of<int16_t>(field);
        case PluginFieldType::kINT32: return numbers_of<int32_t>(field);
        case PluginFieldType::kINT64: return numbers_of<int64_t>(field);
        case PluginFieldType::kFLOAT32: return numbers_of<float>(field);
        case PluginFieldType::kFLOAT64: return numbers_of<double>(field);
        default: return {};
    }
}

// Read the fields of a node or of an engine. Missing fields have spec.py's defaults. Returns a reason, or "".
std::string read(const PluginFieldCollection* fields, Attributes& attributes) {
    for (int32_t i = 0; fields && i < fields->nbFields; ++i) {
        const PluginField& field = fields->fields[i];
        const std::string name = field.name ? field.name : "";
        const bool is_window = name == "radius" || name == "dilation";
        if (!is_window && name != "top_k" && name != "temperature") continue;
        const std::vector<double> values = numbers(field);
        const auto within = [&](double lowest, double highest) {
            return std::all_of(values.begin(), values.end(), [&](double v) { return lowest <= v && v <= highest; });
        };
        if (values.empty() || (!is_window && values.size() != 1))
            return "expected the number or numbers of " + name + ", got " + std::to_string(values.size());
        if (is_window) {
            if (!within(name == "radius" ? 0 : 1, MAX_RADIUS)) return "expected " + name + " up to 65536, got another";
            (name == "radius" ? attributes.radius : attributes.dilation).assign(values.begin(), values.end());
        } else if (name == "top_k") {
            if (!within(0, MAX_TOP_K)) return "expected top_k from 0 to 4096, got another";
            attributes.top_k = static_cast<int32_t>(values[0]);
        } else {
            if (!(values[0] > 0) || !std::isfinite(values[0])) return "expected a temperature > 0, got another";
            attributes.temperature = static_cast<float>(values[0]);
        }
    }
    const size_t radii = attributes.radius.size(), dilations = attributes.dilation.size();
    if (radii != dilations && radii != 1 && dilations != 1)
        return "expected as many radii as dilations, got " + std::to_string(radii) + " and " + std::to_string(dilations);
    return "";
}

// Attributes as fields, with the memory that they point to.
struct Fields {
    explicit Fields(Attributes given) : attributes(std::move(given)) {
        const auto number = [](const std::vector<int32_t>& values) { return static_cast<int32_t>(values.size()); };
        fields = {{"radius", attributes.radius.data(), PluginFieldType::kINT32, number(attributes.radius)},
                  {"dilation", attributes.dilation.data(), PluginFieldType::kINT32, number(attributes.dilation)},
                  {"top_k", &attributes.top_k, PluginFieldType::kINT32, 1},
                  {"temperature", &attributes.temperature, PluginFieldType::kFLOAT32, 1}};
        collection = {static_cast<int32_t>(fields.size()), fields.data()};
    }
    Fields(const Fields&) = delete;
    Fields& operator=(const Fields&) = delete;

    const Attributes attributes;
    std::vector<PluginField> fields;
    PluginFieldCollection collection{};
};

const Kernel* find_kernel(const Attributes& attributes, int64_t channels, int64_t classes, int64_t num_windows,
                          int32_t type) {
    const std::vector<Window> windows = attributes.windows();
    for (int32_t i = 0; i < NUM_KERNELS; ++i) {
        const Kernel& kernel = KERNELS[i];
        if (kernel.channels == channels && kernel.classes == classes && kernel.type == type &&
            kernel.top_k == attributes.top_k && kernel.temperature == attributes.temperature &&
            kernel.min_windows <= num_windows && kernel.num_windows == static_cast<int32_t>(windows.size()) &&
            std::equal(windows.begin(), windows.end(), kernel.windows, [](const Window& a, const Window& b) {
                return a.radius == b.radius && a.dilation == b.dilation;
            }))
            return &kernel;
    }
    return nullptr;
}

bool is_supported(DataType type) {
    return type == DataType::kFLOAT || type == DataType::kHALF || type == DataType::kBF16;
}

std::string text(const Dims& dims) {
    std::string joined;
    for (int32_t axis = 0; axis < dims.nbDims; ++axis) joined += (axis ? "x" : "") + std::to_string(dims.d[axis]);
    return joined;
}

class Plugin final : public IPluginV3,
                     public IPluginV3OneCore,
                     public IPluginV3OneBuild,
                     public IPluginV3OneRuntime {
public:
    explicit Plugin(const Attributes& attributes) : fields_(attributes) {}

    IPluginCapability* getCapabilityInterface(PluginCapabilityType kind) noexcept override {
        switch (kind) {
            case PluginCapabilityType::kCORE: return static_cast<IPluginV3OneCore*>(this);
            case PluginCapabilityType::kBUILD: return static_cast<IPluginV3OneBuild*>(this);
            case PluginCapabilityType::kRUNTIME: return static_cast<IPluginV3OneRuntime*>(this);
        }
        return nullptr;
    }

    IPluginV3* clone() noexcept override { return new Plugin(fields_.attributes); }

    const char* getPluginName() const noexcept override { return NAME; }
    const char* getPluginVersion() const noexcept override { return VERSION; }
    const char* getPluginNamespace() const noexcept override { return NAMESPACE; }

    int32_t getNbOutputs() const noexcept override { return 1; }

    int32_t getOutputDataTypes(DataType* outputs, int32_t num_outputs, const DataType* inputs,
                               int32_t num_inputs) const noexcept override {
        if (!expected_numbers(num_inputs, num_outputs)) return 1;
        outputs[0] = inputs[VALUES];
        return 0;
    }

    int32_t getOutputShapes(const DimsExprs* inputs, int32_t num_inputs, const DimsExprs*, int32_t, DimsExprs* outputs,
                            int32_t num_outputs, IExprBuilder&) noexcept override {
        if (!expected_numbers(num_inputs, num_outputs)) return 1;
        const DimsExprs &query = inputs[QUERY], &values = inputs[VALUES];
        if (query.nbDims != 4 || inputs[KEYS].nbDims != 5 || values.nbDims != 5 || inputs[REFERENCES].nbDims != 2)
            return complain("expected inputs with 4, 5, 5 and 2 dimensions, got others"), 1;
        outputs[0].nbDims = 4;
        outputs[0].d[0] = query.d[0];
        outputs[0].d[1] = values.d[2];
        outputs[0].d[2] = query.d[2];
        outputs[0].d[3] = query.d[3];
        return 0;
    }

    bool supportsFormatCombination(int32_t position, const DynamicPluginTensorDesc* tensors, int32_t num_inputs,
                                   int32_t num_outputs) noexcept override {
        if (!expected_numbers(num_inputs, num_outputs)) return false;
        const PluginTensorDesc& tensor = tensors[position].desc;
        if (tensor.format != TensorFormat::kLINEAR) return false;
        if (position == REFERENCES) return tensor.type == DataType::kINT32;
        return tensor.type == tensors[QUERY].desc.type && is_supported(tensor.type);
    }

    int32_t configurePlugin(const DynamicPluginTensorDesc*, int32_t, const DynamicPluginTensorDesc*,
                            int32_t) noexcept override {
        return 0;  // sizes may still be free
    }

    // Find and load the kernel for these sizes. The launch then only needs pointers.
    int32_t onShapeChange(const PluginTensorDesc* inputs, int32_t num_inputs, const PluginTensorDesc* outputs,
                          int32_t num_outputs) noexcept override {
        if (!expected_numbers(num_inputs, num_outputs)) return 1;
        const Dims &query = inputs[QUERY].dims, &keys = inputs[KEYS].dims, &values = inputs[VALUES].dims,
                   &references = inputs[REFERENCES].dims;
        const bool fits = query.nbDims == 4 && keys.nbDims == 5 && values.nbDims == 5 && references.nbDims == 2 &&
                          keys.d[0] == query.d[0] && values.d[0] == query.d[0] && keys.d[1] == values.d[1] &&
                          keys.d[2] == query.d[1] && keys.d[3] == query.d[2] && values.d[3] == query.d[2] &&
                          keys.d[4] == query.d[3] && values.d[4] == query.d[3] && references.d[1] == 4 &&
                          outputs[0].dims.nbDims == 4;
        if (!fits)
            return complain("expected query BxCxHxW, keys BxKxCxHxW, values BxKxNxHxW and references Mx4, got " +
                            text(query) + ", " + text(keys) + ", " + text(values) + " and " + text(references)),
                   1;
        const int64_t batch = query.d[0], channels = query.d[1], height = query.d[2], width = query.d[3];
        const int64_t num_windows = references.d[0], classes = values.d[2];
        kernel_ = find_kernel(fields_.attributes, channels, classes, num_windows, static_cast<int32_t>(inputs[0].type));
        if (!kernel_) return complain("expected a kernel for " + wanted(channels, classes, inputs[0].type)), 1;
        const auto tiles = [](int64_t size, int64_t tile) { return (size + tile - 1) / tile; };
        const int64_t down = tiles(height, kernel_->tile_rows), layers = batch * kernel_->class_blocks;
        if (down > MAX_GRID || layers > MAX_GRID || num_windows * height * width >= int64_t{1} << 31)
            return complain("expected smaller frames or a smaller batch, got " + text(query)), 1;
        grid_ = {static_cast<unsigned>(tiles(width, kernel_->tile_columns)), static_cast<unsigned>(down),
                 static_cast<unsigned>(layers)};
        sizes_[0] = static_cast<int32_t>(height);
        sizes_[1] = static_cast<int32_t>(width);
        sizes_[2] = static_cast<int32_t>(keys.d[1]);
        sizes_[3] = static_cast<int32_t>(num_windows);
        std::string reason;
        loaded_ = load_kernel(*kernel_, reason);
        if (!loaded_) complain(reason);
        return loaded_ ? 0 : 1;
    }

    int32_t enqueue(const PluginTensorDesc*, const PluginTensorDesc*, const void* const* inputs, void* const* outputs,
                    void*, cudaStream_t stream) noexcept override {
        if (!loaded_) return complain("expected onShapeChange before enqueue, got none"), 1;
        const void* pointers[COPIED + 1] = {inputs[QUERY], inputs[KEYS], inputs[VALUES], inputs[REFERENCES], outputs[0]};
        void* arguments[] = {&pointers[QUERY], &pointers[KEYS], &pointers[VALUES], &pointers[REFERENCES], &sizes_[0],
                             &sizes_[1],       &sizes_[2],      &sizes_[3],        &pointers[COPIED]};
        std::string reason;
        if (launch(loaded_, grid_, static_cast<unsigned>(kernel_->threads), stream, arguments, reason)) return 0;
        return complain(reason), 1;
    }

    IPluginV3* attachToContext(IPluginResourceContext*) noexcept override { return clone(); }

    const PluginFieldCollection* getFieldsToSerialize() noexcept override { return &fields_.collection; }

private:
    static bool expected_numbers(int32_t num_inputs, int32_t num_outputs) {
        if (num_inputs == NUM_INPUTS && num_outputs == 1) return true;
        complain("expected 4 inputs and 1 output, got " + std::to_string(num_inputs) + " and " +
                 std::to_string(num_outputs));
        return false;
    }

    std::string wanted(int64_t channels, int64_t classes, DataType type) const {
        std::string windows;
        for (const Window& window : fields_.attributes.windows())
            windows += " " + std::to_string(window.radius) + "/" + std::to_string(window.dilation);
        return std::to_string(channels) + " channels, " + std::to_string(classes) + " classes, windows" + windows +
               ", top_k " + std::to_string(fields_.attributes.top_k) + ", temperature " +
               std::to_string(fields_.attributes.temperature) + " and data type " +
               std::to_string(static_cast<int32_t>(type)) +
               ", this library has none; build it with the model in CORRFLOW_MODELS, or build the engine without it";
    }

    Fields fields_;
    const Kernel* kernel_ = nullptr;
    void* loaded_ = nullptr;
    Grid grid_{};
    int32_t sizes_[4]{};  // H, W, K, M
};

class Creator final : public IPluginCreatorV3One {
public:
    IPluginV3* createPlugin(const char*, const PluginFieldCollection* fields, TensorRTPhase) noexcept override {
        Attributes attributes;
        const std::string reason = read(fields, attributes);
        if (reason.empty()) return new Plugin(attributes);
        complain(reason);
        return nullptr;
    }

    const PluginFieldCollection* getFieldNames() noexcept override { return &fields_.collection; }
    const char* getPluginName() const noexcept override { return NAME; }
    const char* getPluginVersion() const noexcept override { return VERSION; }
    const char* getPluginNamespace() const noexcept override { return NAMESPACE; }

private:
    Fields fields_{Attributes{}};
};

Creator& creator() {
    static Creator* const only = new Creator;  // TensorRT's registry outlives this library's static objects
    return *only;
}

IPluginRegistry* registered_with = nullptr;

bool has_plugin(IPluginRegistry* registry) {
    int32_t count = 0;
    IPluginCreatorInterface* const* const creators = registry->getAllCreators(&count);
    for (int32_t i = 0; i < count; ++i) {
        if (std::strcmp(creators[i]->getInterfaceInfo().kind, "PLUGIN CREATOR_V3ONE") != 0) continue;
        const auto* found = static_cast<const IPluginCreatorV3One*>(creators[i]);
        if (!std::strcmp(found->getPluginName(), NAME) && !std::strcmp(found->getPluginNamespace(), NAMESPACE)) return true;
    }
    return false;
}

// Register the creator with libnvinfer if the process has loaded it, unless Python has registered its own before. The
// registry's interface depends on the version, so another version is left alone.
__attribute__((constructor)) void register_when_loaded() {
    const std::string name = "libnvinfer.so." + std::to_string(NV_TENSORRT_MAJOR);
    void* const nvinfer = dlopen(name.c_str(), RTLD_LAZY | RTLD_NOLOAD);
    if (!nvinfer) return;
    const auto get_registry = reinterpret_cast<IPluginRegistry* (*)()>(dlsym(nvinfer, "getPluginRegistry"));
    IPluginRegistry* const registry = get_registry ? get_registry() : nullptr;
    if (registry && !has_plugin(registry) && registry->registerCreator(creator(), NAMESPACE)) registered_with = registry;
}

}  // namespace
}  // namespace corrflow

// Take back what register_when_loaded did.
CORRFLOW_PUBLIC void corrflow_trt_deregister() {
    if (corrflow::registered_with) corrflow::registered_with->deregisterCreator(corrflow::creator());
    corrflow::registered_with = nullptr;
}

// IPluginRegistry::loadLibrary calls the next two.
CORRFLOW_PUBLIC void setLoggerFinder(nvinfer1::ILoggerFinder* finder) { corrflow::logger_finder = finder; }

CORRFLOW_PUBLIC nvinfer1::IPluginCreatorInterface* const* getCreators(int32_t& count) {
    static nvinfer1::IPluginCreatorInterface* const creators[] = {&corrflow::creator()};
    corrflow_trt_deregister();  // loadLibrary registers the creator itself, and refuses one that is registered
    count = 1;
    return creators;
}

// For Python: the kernel's source, and whether a kernel is here for an engine. type: nvinfer1::DataType
CORRFLOW_PUBLIC const char* corrflow_trt_kernel_hash() { return corrflow::KERNEL_HASH; }

CORRFLOW_PUBLIC int32_t corrflow_trt_major() { return NV_TENSORRT_MAJOR; }

CORRFLOW_PUBLIC int32_t corrflow_trt_has_kernel(int32_t channels, int32_t classes, int32_t num_windows,
                                                const int32_t* radius, int32_t num_radii, const int32_t* dilation,
                                                int32_t num_dilations, int32_t top_k, float temperature, int32_t type) {
    corrflow::Attributes attributes;
    attributes.radius.assign(radius, radius + num_radii);
    attributes.dilation.assign(dilation, dilation + num_dilations);
    attributes.top_k = top_k;
    attributes.temperature = temperature;
    return corrflow::find_kernel(attributes, channels, classes, num_windows, type) != nullptr;
}
