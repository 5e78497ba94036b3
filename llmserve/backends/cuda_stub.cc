// A stand-in for NVIDIA's driver, for compiling on a machine without one. TVM's CUDA runtime has to be loaded for kernels
// to be compiled when a model is, instead of at each start of the server; and it is linked to these functions. None is
// ever called: without a device, nothing gets so far. Each would answer CUDA_ERROR_NO_DEVICE.
#define NO_DEVICE(name) \
  extern "C" __attribute__((visibility("default"))) int name() { return 100; }
NO_DEVICE(cuDeviceGetName)
NO_DEVICE(cuFuncSetAttribute)
NO_DEVICE(cuGetErrorName)
NO_DEVICE(cuGetErrorString)
NO_DEVICE(cuLaunchKernelEx)
NO_DEVICE(cuModuleGetFunction)
NO_DEVICE(cuModuleLoadData)
NO_DEVICE(cuModuleUnload)
NO_DEVICE(cuTensorMapEncodeTiled)
