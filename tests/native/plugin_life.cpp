// A libnvinfer for tests: a plugin registry, and a program that calls a plugin as TensorRT's builder and runtime do.
//
//     drive_registered(deletes)   drives the creator that Python has registered through the bindings
//     drive_library(path)         loads a plugin library, as trtexec's --dynamicPlugins does, and drives its creator
//
// With -DLIFE_PROGRAM it is a program with the path as its argument. LIFE_TOP_K is the node's top_k, 5 without it.
//
// Both create, clone, serialise, create again, attach, run and delete: through C++ virtual functions, in a thread without
// Python's lock. Each observation is one line "name: values" on standard output. The result is 0, or 1 for a failed call.
#include <NvInfer.h>

#include <dlfcn.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <thread>
#include <vector>

using namespace nvinfer1;

namespace {

struct Registered {
    IPluginCreatorInterface* creator;
    std::string space;
};
std::vector<Registered> registered;

struct Registry : IPluginRegistry {
#if NV_TENSORRT_MAJOR < 11
    bool registerCreator(IPluginCreator&, AsciiChar const*) noexcept override { return false; }
    IPluginCreator* const* getPluginCreatorList(int32_t* count) const noexcept override { return *count = 0, nullptr; }
    IPluginCreator* getPluginCreator(AsciiChar const*, AsciiChar const*, AsciiChar const*) noexcept override {
        return nullptr;
    }
    bool deregisterCreator(IPluginCreator const&) noexcept override { return false; }
#endif
    void setErrorRecorder(IErrorRecorder*) noexcept override {}
    IErrorRecorder* getErrorRecorder() const noexcept override { return nullptr; }
    bool isParentSearchEnabled() const override { return true; }
    void setParentSearchEnabled(bool) override {}
    PluginLibraryHandle loadLibrary(AsciiChar const*) noexcept override { return nullptr; }
    void deregisterLibrary(PluginLibraryHandle) noexcept override {}
    bool registerCreator(IPluginCreatorInterface& creator, AsciiChar const* space) noexcept override {
        registered.push_back({&creator, space});
        return true;
    }
    IPluginCreatorInterface* const* getAllCreators(int32_t* count) const noexcept override {
        static IPluginCreatorInterface* first;
        first = registered.empty() ? nullptr : registered[0].creator;
        return *count = first != nullptr, &first;
    }
    IPluginCreatorInterface* getCreator(AsciiChar const*, AsciiChar const*, AsciiChar const*) noexcept override {
        return registered.empty() ? nullptr : registered[0].creator;
    }
    bool deregisterCreator(IPluginCreatorInterface const&) noexcept override { return registered.clear(), true; }
    IPluginResource* acquirePluginResource(AsciiChar const*, IPluginResource*) noexcept override { return nullptr; }
    int32_t releasePluginResource(AsciiChar const*) noexcept override { return 0; }
    // In the table from 10.13 on; not marked as overriding, because the headers of 10.3 do not have it.
    virtual IPluginCreatorInterface* const* getAllCreatorsRecursive(int32_t* count) noexcept {
        return *count = 0, nullptr;
    }
};

Registry registry;

struct Size : IDimensionExpr {
    struct Value : apiv::VDimensionExpr {
        int64_t value;
        explicit Value(int64_t value) : value(value) {}
        bool isConstant() const override { return true; }
        int64_t getConstantValue() const override { return value; }
        bool isSizeTensor() const override { return false; }
    } content;
    explicit Size(int64_t value) : content(value) { mImpl = &content; }
};

struct Builder : IExprBuilder {
    struct Unused : apiv::VExprBuilder {
        IDimensionExpr const* constant(int64_t value) override { return new Size(value); }
        IDimensionExpr const* operation(DimensionOperation, IDimensionExpr const& first,
                                        IDimensionExpr const&) override {
            return &first;
        }
        IDimensionExpr const* declareSizeTensor(int32_t, IDimensionExpr const& best, IDimensionExpr const&) override {
            return &best;
        }
    } content;
    Builder() { mImpl = &content; }
};

// Sizes of query, keys, values, references and result, as in on_stub_bindings.py.
constexpr int TENSORS = 5;
using Shape = std::vector<int64_t>;
const Shape SHAPES[TENSORS] = {{1, 91, 60, 107}, {1, 3, 91, 60, 107}, {1, 3, 4, 60, 107}, {5, 4}, {1, 4, 60, 107}};

PluginTensorDesc description(int index, DataType type, int64_t height = 60) {
    PluginTensorDesc described{};
    const Shape& shape = SHAPES[index];
    described.dims.nbDims = (int32_t)shape.size();
    for (size_t axis = 0; axis < shape.size(); ++axis) described.dims.d[axis] = shape[axis];
    if (index != 3) described.dims.d[shape.size() - 2] = height;
    described.type = index == 3 ? DataType::kINT32 : type;
    described.format = TensorFormat::kLINEAR;
    return described;
}

template <class T>
T* capability(IPluginV3* plugin, PluginCapabilityType kind) {
    return static_cast<T*>(plugin->getCapabilityInterface(kind));
}

bool supported(IPluginV3OneBuild* build, std::vector<DataType> types, int position = -1,
               TensorFormat format = TensorFormat::kLINEAR) {
    DynamicPluginTensorDesc tensors[TENSORS]{};
    for (int i = 0; i < TENSORS; ++i) {
        tensors[i].desc = description(i, types[i]);
        tensors[i].desc.type = types[i];
        tensors[i].min = tensors[i].max = tensors[i].opt = tensors[i].desc.dims;
    }
    if (position >= 0) tensors[position].desc.format = format;
    bool all = true;
    for (int i = 0; i < TENSORS; ++i)
        if (position < 0 || i == position) all = all && build->supportsFormatCombination(i, tensors, 4, 1);
    return all;
}

#define EXPECT(condition)                                            \
    if (!(condition)) {                                              \
        std::printf("failed: %s\n", #condition), std::fflush(stdout); \
        return 1;                                                    \
    }

// One life of a plugin. deletes: delete every plugin afterwards, as TensorRT does.
int live(IPluginCreatorInterface* interface, char const* space, bool deletes) {
    EXPECT(!std::strcmp(interface->getInterfaceInfo().kind, "PLUGIN CREATOR_V3ONE"));
    auto* creator = static_cast<IPluginCreatorV3One*>(interface);
    std::printf("creator: %s %s %s %s\n", creator->getPluginName(), creator->getPluginVersion(),
                creator->getPluginNamespace(), space);
    std::printf("fields:");
    auto const* names = creator->getFieldNames();
    for (int i = 0; i < names->nbFields; ++i) std::printf(" %s", names->fields[i].name);
    std::printf("\n");

    // As a parser passes them: 64-bit integers.
    char const* const best = std::getenv("LIFE_TOP_K");
    int64_t radius[] = {8, 12}, dilation[] = {1, 2}, top_k[] = {best ? std::atoi(best) : 5};
    float temperature[] = {0.07f};
    PluginField const parsed[] = {{"radius", radius, PluginFieldType::kINT64, 2},
                                  {"dilation", dilation, PluginFieldType::kINT64, 2},
                                  {"top_k", top_k, PluginFieldType::kINT64, 1},
                                  {"temperature", temperature, PluginFieldType::kFLOAT32, 1}};
    PluginFieldCollection const collection{4, parsed};
    IPluginV3* created = creator->createPlugin("node", &collection, TensorRTPhase::kBUILD);
    EXPECT(created);
    IPluginV3* owned = created->clone();
    EXPECT(owned);
    auto* core = capability<IPluginV3OneCore>(owned, PluginCapabilityType::kCORE);
    auto* build = capability<IPluginV3OneBuild>(owned, PluginCapabilityType::kBUILD);
    EXPECT(core && build);
    std::printf("plugin: %s %s %s %d\n", core->getPluginName(), core->getPluginVersion(), core->getPluginNamespace(),
                build->getNbOutputs());

    constexpr DataType FLOAT = DataType::kFLOAT, HALF = DataType::kHALF, INT32 = DataType::kINT32;
    DataType const inputs[] = {HALF, HALF, HALF, INT32};
    DataType output = FLOAT;
    EXPECT(build->getOutputDataTypes(&output, 1, inputs, 4) == 0);
    std::printf("output type: %d\n", (int)output);
    DimsExprs sizes[4]{}, result{};
    for (int i = 0; i < 4; ++i) {
        sizes[i].nbDims = (int32_t)SHAPES[i].size();
        for (size_t axis = 0; axis < SHAPES[i].size(); ++axis) sizes[i].d[axis] = new Size(SHAPES[i][axis]);
    }
    Builder builder;
    EXPECT(build->getOutputShapes(sizes, 4, nullptr, 0, &result, 1, builder) == 0);
    std::printf("output shape:");
    for (int axis = 0; axis < result.nbDims; ++axis) std::printf(" %d", (int)result.d[axis]->getConstantValue());
    std::printf("\n");
    std::printf("supported: half %d float %d mixed %d references %d layout %d\n",
                supported(build, {HALF, HALF, HALF, INT32, HALF}), supported(build, {FLOAT, FLOAT, FLOAT, INT32, FLOAT}),
                supported(build, {HALF, FLOAT, HALF, INT32, HALF}), supported(build, {HALF, HALF, HALF, HALF, HALF}),
                supported(build, {HALF, HALF, HALF, INT32, HALF}, 0, TensorFormat::kCHW32));
    DynamicPluginTensorDesc tensors[TENSORS]{};
    for (int i = 0; i < TENSORS; ++i) tensors[i].desc = description(i, HALF);
    EXPECT(build->configurePlugin(tensors, 4, tensors + 4, 1) == 0);
    EXPECT(build->getWorkspaceSize(tensors, 4, tensors + 4, 1) == 0);

    // An engine keeps copies of the fields, and a later process creates the plugin from them.
    IPluginV3* twin = owned->clone();
    auto const* fields = capability<IPluginV3OneRuntime>(twin, PluginCapabilityType::kRUNTIME)->getFieldsToSerialize();
    EXPECT(fields && fields->nbFields == 4);
    std::vector<std::vector<char>> stored;
    std::vector<std::string> labels;
    std::vector<PluginField> again;
    std::printf("serialised:");
    for (int i = 0; i < fields->nbFields; ++i) {
        PluginField const& field = fields->fields[i];
        auto const* bytes = static_cast<char const*>(field.data);
        stored.emplace_back(bytes, bytes + 4 * field.length);
        labels.emplace_back(field.name);
        again.emplace_back(nullptr, nullptr, field.type, field.length);
        for (int k = 0; k < field.length; ++k)
            field.type == PluginFieldType::kFLOAT32
                ? std::printf(" %g", reinterpret_cast<float const*>(stored[i].data())[k])
                : std::printf(" %d", reinterpret_cast<int32_t const*>(stored[i].data())[k]);
    }
    std::printf("\n");
    for (size_t i = 0; i < again.size(); ++i) again[i].name = labels[i].c_str(), again[i].data = stored[i].data();
    PluginFieldCollection const saved{(int32_t)again.size(), again.data()};
    IPluginV3* loaded = creator->createPlugin("node", &saved, TensorRTPhase::kRUNTIME);
    EXPECT(loaded);
    auto* attached = capability<IPluginV3OneRuntime>(loaded, PluginCapabilityType::kRUNTIME)->attachToContext(nullptr);
    EXPECT(attached);
    auto* runtime = capability<IPluginV3OneRuntime>(attached, PluginCapabilityType::kRUNTIME);
    EXPECT(runtime->setTactic(0) == 0);
    void const* const pointers[4] = {(void*)11, (void*)22, (void*)33, (void*)44};
    void* const results[1] = {(void*)66};
    for (int64_t height : {60, 68}) {  // another frame size, the same kernel
        PluginTensorDesc in[4], out = description(4, HALF, height);
        for (int i = 0; i < 4; ++i) in[i] = description(i, HALF, height);
        EXPECT(runtime->onShapeChange(in, 4, &out, 1) == 0);
        EXPECT(runtime->enqueue(in, &out, pointers, results, nullptr, (cudaStream_t)55) == 0);
    }
    if (deletes)
        for (IPluginV3* plugin : {attached, loaded, twin, owned, created}) delete plugin;
    std::printf("done: %s\n", deletes ? "deleted" : "kept");
    std::fflush(stdout);
    return 0;
}

int in_a_thread(IPluginCreatorInterface* creator, char const* space, bool deletes) {
    int result = 1;
    std::thread([&] { result = live(creator, space, deletes); }).join();
    return result;
}

}  // namespace

#define PUBLIC extern "C" __attribute__((visibility("default")))

// Under other names in the source, because TensorRT's headers declare these functions with types of their own.
#define INSTEAD_OF(name) asm(#name) __attribute__((visibility("default")))
extern "C" void* registry_of_runtime() INSTEAD_OF(getPluginRegistry);
extern "C" void* registry_of_builder() INSTEAD_OF(getBuilderPluginRegistry);
extern "C" void* no_builder() INSTEAD_OF(createInferBuilder_INTERNAL);
extern "C" void* no_refitter() INSTEAD_OF(createInferRefitter_INTERNAL);
extern "C" void* no_runtime() INSTEAD_OF(createInferRuntime_INTERNAL);
void* registry_of_runtime() { return static_cast<IPluginRegistry*>(&registry); }
void* registry_of_builder() { return static_cast<IPluginRegistry*>(&registry); }
void* no_builder() { return nullptr; }
void* no_refitter() { return nullptr; }
void* no_runtime() { return nullptr; }

PUBLIC int drive_registered(int deletes) {
    if (registered.size() != 1) return std::printf("failed: %zu creators\n", registered.size()), 1;
    return in_a_thread(registered[0].creator, registered[0].space.c_str(), deletes);
}

PUBLIC int drive_library(char const* path) {
    void* library = dlopen(path, RTLD_LAZY);
    if (!library) return std::printf("failed: %s\n", dlerror()), 1;
    using Creators = IPluginCreatorInterface* const* (*)(int32_t&);
    auto creators = reinterpret_cast<Creators>(dlsym(library, "getCreators"));
    if (!creators) return std::printf("failed: no getCreators\n"), 1;
    std::printf("registered when loaded: %zu\n", registered.size());
    int32_t count = 0;
    IPluginCreatorInterface* const* list = creators(count);
    if (count != 1) return std::printf("failed: %d creators\n", count), 1;
    std::printf("registered by loadLibrary: %zu\n", registered.size() + count);
    return in_a_thread(list[0], "corrflow", true);
}

#ifdef LIFE_PROGRAM
int main(int, char** arguments) { return drive_library(arguments[1]); }
#endif
