// HIP's functions, found in libamdhip64 when the first is needed: the plugin loads on machines that have no ROCm, and
// says so only when a device is asked for.
#pragma once

#include <dlfcn.h>
#include <tvm/ffi/error.h>
#include <tvm/ffi/extra/c_env_api.h>

#include <cstring>
#include <string>
#include <vector>

#include "hip_declarations.h"

#define LLMSERVE_HIP_FUNCTIONS(F)                                                                                     \
  F(hipGetDeviceCount)                                                                                                \
  F(hipGetDevice)                                                                                                     \
  F(hipSetDevice)                                                                                                     \
  F(hipDeviceGetName)                                                                                                 \
  F(hipDeviceGetAttribute)                                                                                            \
  F(hipDriverGetVersion)                                                                                              \
  F(hipRuntimeGetVersion)                                                                                             \
  F(hipGetErrorString)                                                                                                \
  F(hipGetLastError)                                                                                                  \
  F(hipMalloc)                                                                                                        \
  F(hipFree)                                                                                                          \
  F(hipHostMalloc)                                                                                                    \
  F(hipHostFree)                                                                                                      \
  F(hipMemGetInfo)                                                                                                    \
  F(hipMemcpyAsync)                                                                                                   \
  F(hipMemcpyPeerAsync)                                                                                               \
  F(hipStreamCreate)                                                                                                  \
  F(hipStreamDestroy)                                                                                                 \
  F(hipStreamSynchronize)                                                                                             \
  F(hipStreamWaitEvent)                                                                                               \
  F(hipEventCreate)                                                                                                   \
  F(hipEventDestroy)                                                                                                  \
  F(hipEventRecord)                                                                                                   \
  F(hipEventSynchronize)                                                                                              \
  F(hipEventElapsedTime)                                                                                              \
  F(hipModuleLoadData)                                                                                                \
  F(hipModuleUnload)                                                                                                  \
  F(hipModuleGetFunction)                                                                                             \
  F(hipModuleLaunchKernel)                                                                                            \
  F(hipStreamBeginCapture)                                                                                            \
  F(hipStreamEndCapture)                                                                                              \
  F(hipGraphInstantiate)                                                                                              \
  F(hipGraphDestroy)                                                                                                  \
  F(hipGraphLaunch)                                                                                                   \
  F(hipGraphExecDestroy)

namespace llmserve::hip {

class Api {
 public:
#define LLMSERVE_HIP_MEMBER(name) decltype(&::name) name = nullptr;
  LLMSERVE_HIP_FUNCTIONS(LLMSERVE_HIP_MEMBER)
#undef LLMSERVE_HIP_MEMBER

  // Throws when ROCm's library is not there, or lacks a function.
  static const Api& Get() {
    static const Api api;
    return api;
  }

  static bool Present() {
    try {
      Get();
      return true;
    } catch (const tvm::ffi::Error&) {
      return false;
    }
  }

  // Throws what HIP says of a call that failed.
  void Check(hipError_t status, const std::string& doing) const {
    if (status == hipSuccess) return;
    hipGetLastError();  // or it would be told again after another call
    if (static_cast<int>(status) == kOutOfMemory) {
      TVM_FFI_THROW(MemoryError) << doing << ": the GPU is out of memory.";
    }
    TVM_FFI_THROW(RuntimeError) << doing << ": HIP says " << hipGetErrorString(status) << " ("
                                << static_cast<int>(status) << ").";
  }

  int Attribute(int attribute, int device) const {
    int value = 0;
    Check(hipDeviceGetAttribute(&value, static_cast<hipDeviceAttribute_t>(attribute), device),
          "Asking for a device's attribute");
    return value;
  }

  std::string Name(int device) const {
    char name[256] = {};
    Check(hipDeviceGetName(name, sizeof(name) - 1, device), "Asking for a device's name");
    return name;
  }

  // The instruction set ("gfx1100"), empty where HIP does not tell. It is a field of a structure whose layout differs by
  // HIP's version, and the only one in it that reads "gfx" and a number.
  std::string Architecture(int device) const {
    if (properties_ == nullptr) return "";
    std::vector<char> raw(1 << 14);
    if (properties_(raw.data(), device) != hipSuccess) return "";
    for (size_t i = 0; i + 16 < raw.size(); ++i) {
      if (std::memcmp(&raw[i], "gfx", 3) != 0 || raw[i + 3] < '0' || raw[i + 3] > '9') continue;
      std::string found(&raw[i]);
      return found.substr(0, found.find(':'));  // what follows are features, as in gfx90a:sramecc+:xnack-
    }
    return "";
  }

 private:
  Api() {
    void* library = nullptr;
    for (const char* name : {"libamdhip64.so.7", "libamdhip64.so.6", "libamdhip64.so.5", "libamdhip64.so",
                             "/opt/rocm/lib/libamdhip64.so"}) {
      if ((library = dlopen(name, RTLD_NOW | RTLD_LOCAL)) != nullptr) break;
    }
    if (library == nullptr) {
      TVM_FFI_THROW(RuntimeError) << "There is no libamdhip64.so; install ROCm's runtime for HIP (on Debian, "
                                     "libamdhip64-5).";
    }
#define LLMSERVE_HIP_FIND(name)                                                                      \
  name = reinterpret_cast<decltype(name)>(dlsym(library, #name));                                    \
  if (name == nullptr) {                                                                             \
    TVM_FFI_THROW(RuntimeError) << "ROCm's libamdhip64 has no " #name "; install ROCm 5.2 or later."; \
  }
    LLMSERVE_HIP_FUNCTIONS(LLMSERVE_HIP_FIND)
#undef LLMSERVE_HIP_FIND
    for (const char* name : {"hipGetDevicePropertiesR0600", "hipGetDeviceProperties"}) {
      properties_ = reinterpret_cast<Properties>(dlsym(library, name));
      if (properties_ != nullptr) break;
    }
  }

  using Properties = hipError_t (*)(void*, int);
  Properties properties_ = nullptr;
};

constexpr int kDeviceType = 10;  // kDLROCM

// The stream that TVM has work go to in this thread.
inline hipStream_t CurrentStream(int device) {
  return static_cast<hipStream_t>(TVMFFIEnvGetStream(kDeviceType, device));
}

}  // namespace llmserve::hip
