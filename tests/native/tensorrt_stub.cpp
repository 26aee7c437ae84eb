// The nine symbols that the import of TensorRT's Python bindings needs; none has an effect.
extern "C" {
void* createInferBuilder_INTERNAL() { return nullptr; }
void* createInferRefitter_INTERNAL() { return nullptr; }
void* createInferRuntime_INTERNAL() { return nullptr; }
void* createNvOnnxParserRefitter_INTERNAL() { return nullptr; }
void* createNvOnnxParser_INTERNAL() { return nullptr; }
void* getBuilderPluginRegistry() { return nullptr; }
int getNvOnnxParserVersion() { return 0; }
void* getPluginRegistry() { return nullptr; }
bool initLibNvInferPlugins() { return true; }
}
