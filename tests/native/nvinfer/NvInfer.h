// Declarations of TensorRT's plugin interface, as far as a plugin and its tests use them: for machines without TensorRT.
//
// TensorRT calls these classes through their tables of virtual functions. So the order of functions and members is that
// of its headers, from 10.3 to 11; the registry alone lost its functions for older plugins in 11. TENSORRT_INCLUDE
// replaces this folder by that of the real headers. A release of the library is always built with those.
#pragma once

#include <cstddef>
#include <cstdint>

#ifndef NV_TENSORRT_MAJOR
#define NV_TENSORRT_MAJOR 10
#endif

struct CUstream_st;
using cudaStream_t = CUstream_st*;

namespace nvinfer1 {

using AsciiChar = char;

enum class APILanguage : int32_t { kCPP, kPYTHON };
enum class DataType : int32_t { kFLOAT = 0, kHALF = 1, kINT8 = 2, kINT32 = 3, kBF16 = 7, kINT64 = 8 };
enum class TensorFormat : int32_t { kLINEAR = 0, kCHW32 = 5 };
enum class PluginFieldType : int32_t { kFLOAT16, kFLOAT32, kFLOAT64, kINT8, kINT16, kINT32, kCHAR, kINT64 = 10 };
enum class PluginCapabilityType : int32_t { kCORE, kBUILD, kRUNTIME };
enum class TensorRTPhase : int32_t { kBUILD, kRUNTIME };
enum class DimensionOperation : int32_t { kSUM, kPROD, kMAX, kMIN, kSUB, kEQUAL, kLESS, kFLOOR_DIV, kCEIL_DIV };

struct InterfaceInfo {
    char const* kind;
    int32_t major;
    int32_t minor;
};

class IVersionedInterface {
public:
    virtual APILanguage getAPILanguage() const noexcept { return APILanguage::kCPP; }
    virtual InterfaceInfo getInterfaceInfo() const noexcept = 0;
    virtual ~IVersionedInterface() noexcept = default;
};

class ILogger {
public:
    enum class Severity : int32_t { kINTERNAL_ERROR, kERROR, kWARNING, kINFO, kVERBOSE };
    virtual void log(Severity, AsciiChar const*) noexcept = 0;
    virtual ~ILogger() = default;
};

class ILoggerFinder {
public:
    virtual ILogger* findLogger() = 0;

protected:
    virtual ~ILoggerFinder() = default;
};

struct Dims {
    int32_t nbDims;
    int64_t d[8];
};

struct PluginTensorDesc {
    Dims dims;
    DataType type;
    TensorFormat format;
    float scale;
};

struct DynamicPluginTensorDesc {
    PluginTensorDesc desc;
    Dims min, max, opt;
};

struct PluginField {
    PluginField(AsciiChar const* name = nullptr, void const* data = nullptr,
                PluginFieldType type = PluginFieldType(8), int32_t length = 0) noexcept
        : name(name), data(data), type(type), length(length) {}
    AsciiChar const* name;
    void const* data;
    PluginFieldType type;
    int32_t length;
};

struct PluginFieldCollection {
    int32_t nbFields;
    PluginField const* fields;
};

class IDimensionExpr;

// What is behind a symbolic size and its builder; each has an object of this kind as its only member.
namespace apiv {

class VRoot {
public:
    virtual ~VRoot() noexcept = default;
};

class VDimensionExpr : public VRoot {
public:
    virtual bool isConstant() const = 0;
    virtual int64_t getConstantValue() const = 0;
    virtual bool isSizeTensor() const = 0;
};

class VExprBuilder : public VRoot {
public:
    virtual IDimensionExpr const* constant(int64_t) = 0;
    virtual IDimensionExpr const* operation(DimensionOperation, IDimensionExpr const&, IDimensionExpr const&) = 0;
    virtual IDimensionExpr const* declareSizeTensor(int32_t, IDimensionExpr const&, IDimensionExpr const&) = 0;
};

}  // namespace apiv

class INoCopy {
protected:
    INoCopy() = default;
    virtual ~INoCopy() = default;
};

class IDimensionExpr : public INoCopy {
public:
    int64_t getConstantValue() const noexcept { return mImpl->getConstantValue(); }

protected:
    apiv::VDimensionExpr* mImpl;
    virtual ~IDimensionExpr() noexcept = default;
};

class IExprBuilder : public INoCopy {
protected:
    apiv::VExprBuilder* mImpl;
    virtual ~IExprBuilder() noexcept = default;
};

struct DimsExprs {
    int32_t nbDims;
    IDimensionExpr const* d[8];
};

class IPluginCapability : public IVersionedInterface {};
class IPluginResource;
class IPluginResourceContext;
class IPluginCreator;
class IErrorRecorder;

class IPluginV3 : public IVersionedInterface {
public:
    InterfaceInfo getInterfaceInfo() const noexcept override { return {"PLUGIN", 1, 0}; }
    virtual IPluginCapability* getCapabilityInterface(PluginCapabilityType) noexcept = 0;
    virtual IPluginV3* clone() noexcept = 0;
};

class IPluginV3OneCore : public IPluginCapability {
public:
    InterfaceInfo getInterfaceInfo() const noexcept override { return {"PLUGIN_V3ONE_CORE", 1, 0}; }
    virtual AsciiChar const* getPluginName() const noexcept = 0;
    virtual AsciiChar const* getPluginVersion() const noexcept = 0;
    virtual AsciiChar const* getPluginNamespace() const noexcept = 0;
};

class IPluginV3OneBuild : public IPluginCapability {
public:
    InterfaceInfo getInterfaceInfo() const noexcept override { return {"PLUGIN_V3ONE_BUILD", 1, 0}; }
    virtual int32_t configurePlugin(DynamicPluginTensorDesc const*, int32_t, DynamicPluginTensorDesc const*,
                                    int32_t) noexcept = 0;
    virtual int32_t getOutputDataTypes(DataType*, int32_t, DataType const*, int32_t) const noexcept = 0;
    virtual int32_t getOutputShapes(DimsExprs const*, int32_t, DimsExprs const*, int32_t, DimsExprs*, int32_t,
                                    IExprBuilder&) noexcept = 0;
    virtual bool supportsFormatCombination(int32_t, DynamicPluginTensorDesc const*, int32_t, int32_t) noexcept = 0;
    virtual int32_t getNbOutputs() const noexcept = 0;
    virtual size_t getWorkspaceSize(DynamicPluginTensorDesc const*, int32_t, DynamicPluginTensorDesc const*,
                                    int32_t) const noexcept {
        return 0;
    }
    virtual int32_t getValidTactics(int32_t*, int32_t) noexcept { return 0; }
    virtual int32_t getNbTactics() noexcept { return 0; }
    virtual char const* getTimingCacheID() noexcept { return nullptr; }
    virtual int32_t getFormatCombinationLimit() noexcept { return 100; }
    virtual char const* getMetadataString() noexcept { return nullptr; }
};

class IPluginV3OneRuntime : public IPluginCapability {
public:
    InterfaceInfo getInterfaceInfo() const noexcept override { return {"PLUGIN_V3ONE_RUNTIME", 1, 0}; }
    virtual int32_t setTactic(int32_t) noexcept { return 0; }
    virtual int32_t onShapeChange(PluginTensorDesc const*, int32_t, PluginTensorDesc const*, int32_t) noexcept = 0;
    virtual int32_t enqueue(PluginTensorDesc const*, PluginTensorDesc const*, void const* const*, void* const*, void*,
                            cudaStream_t) noexcept = 0;
    virtual IPluginV3* attachToContext(IPluginResourceContext*) noexcept = 0;
    virtual PluginFieldCollection const* getFieldsToSerialize() noexcept = 0;
};

class IPluginCreatorInterface : public IVersionedInterface {};

class IPluginCreatorV3One : public IPluginCreatorInterface {
public:
    InterfaceInfo getInterfaceInfo() const noexcept override { return {"PLUGIN CREATOR_V3ONE", 1, 0}; }
    virtual IPluginV3* createPlugin(AsciiChar const*, PluginFieldCollection const*, TensorRTPhase) noexcept = 0;
    virtual PluginFieldCollection const* getFieldNames() noexcept = 0;
    virtual AsciiChar const* getPluginName() const noexcept = 0;
    virtual AsciiChar const* getPluginVersion() const noexcept = 0;
    virtual AsciiChar const* getPluginNamespace() const noexcept = 0;
};

class IPluginRegistry {
public:
    using PluginLibraryHandle = void*;
#if NV_TENSORRT_MAJOR < 11
    virtual bool registerCreator(IPluginCreator&, AsciiChar const*) noexcept = 0;
    virtual IPluginCreator* const* getPluginCreatorList(int32_t*) const noexcept = 0;
    virtual IPluginCreator* getPluginCreator(AsciiChar const*, AsciiChar const*, AsciiChar const*) noexcept = 0;
#endif

protected:
    virtual ~IPluginRegistry() noexcept = default;

public:
    virtual void setErrorRecorder(IErrorRecorder*) noexcept = 0;
    virtual IErrorRecorder* getErrorRecorder() const noexcept = 0;
#if NV_TENSORRT_MAJOR < 11
    virtual bool deregisterCreator(IPluginCreator const&) noexcept = 0;
#endif
    virtual bool isParentSearchEnabled() const = 0;
    virtual void setParentSearchEnabled(bool) = 0;
    virtual PluginLibraryHandle loadLibrary(AsciiChar const*) noexcept = 0;
    virtual void deregisterLibrary(PluginLibraryHandle) noexcept = 0;
    virtual bool registerCreator(IPluginCreatorInterface&, AsciiChar const*) noexcept = 0;
    virtual IPluginCreatorInterface* const* getAllCreators(int32_t*) const noexcept = 0;
    virtual IPluginCreatorInterface* getCreator(AsciiChar const*, AsciiChar const*, AsciiChar const*) noexcept = 0;
    virtual bool deregisterCreator(IPluginCreatorInterface const&) noexcept = 0;
    virtual IPluginResource* acquirePluginResource(AsciiChar const*, IPluginResource*) noexcept = 0;
    virtual int32_t releasePluginResource(AsciiChar const*) noexcept = 0;
    virtual IPluginCreatorInterface* const* getAllCreatorsRecursive(int32_t*) noexcept = 0;
};

}  // namespace nvinfer1
