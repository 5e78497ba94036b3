// The GPU as wgpu-native shows it: the choice of an adapter, the device with all that the adapter can give, and errors.
// It moves no data.
//
// wgpu-native reports an error to a callback, in the thread and within the call that caused it; ThrowIfRefused turns it
// into an exception afterwards. What it cannot report that way (a refused submission, a lost device while waiting) ends
// the process inside wgpu-native, so nothing is submitted that was refused while it was encoded.
#pragma once

#include <tvm/ffi/container/array.h>
#include <tvm/ffi/container/map.h>
#include <tvm/ffi/error.h>
#include <tvm/ffi/string.h>

#include <algorithm>
#include <atomic>
#include <cctype>
#include <cstdlib>
#include <mutex>
#include <string>
#include <vector>

#include "wgpu.h"

namespace llmserve {

inline WGPUStringView View(const std::string& text) { return {text.data(), text.size()}; }
inline std::string Text(WGPUStringView view) {
  if (view.data == nullptr) return "";
  return view.length == WGPU_STRLEN ? std::string(view.data) : std::string(view.data, view.length);
}

using InfoMap = tvm::ffi::Map<tvm::ffi::String, tvm::ffi::Any>;

class WebGPUDevice {
 public:
  WGPUDevice device = nullptr;
  WGPUQueue queue = nullptr;
  WGPULimits limits = WGPU_LIMITS_INIT;
  WGPUAdapterInfo info = WGPU_ADAPTER_INFO_INIT;

  // Throws what happened when there is no adapter, none of the wanted name, or it gives no device.
  WebGPUDevice() {
    std::vector<WGPUAdapter> adapters = Adapters();
    WGPUAdapter adapter = Choose(adapters);
    wgpuAdapterGetInfo(adapter, &info);
    Open(adapter);
    queue = wgpuDeviceGetQueue(device);
    wgpuDeviceGetLimits(device, &limits);
    for (WGPUAdapter other : adapters) wgpuAdapterRelease(other);
  }

  // After calls that wgpu-native may refuse: throws what it said, with `doing` before it.
  void ThrowIfRefused(const std::string& doing) const {
    if (lost_) {
      std::lock_guard<std::mutex> lock(lost_mutex_);
      TVM_FFI_THROW(RuntimeError) << "The WebGPU device " << Text(info.device) << " was lost (" << lost_message_
                                  << "); restart the server.";
    }
    if (refusal_.empty()) return;
    std::string message;
    std::swap(message, refusal_);
    bool memory = out_of_memory_;
    out_of_memory_ = false;
    if (memory) {
      TVM_FFI_THROW(MemoryError) << doing << ": the GPU is out of memory (" << message << ").";
    }
    TVM_FFI_THROW(RuntimeError) << doing << ": " << message;
  }

  bool Has(WGPUFeatureName feature) const { return wgpuDeviceHasFeature(device, feature); }

  // For people (`doctor`), and for the compiler's target: names, limits as numbers, features as booleans.
  InfoMap Describe() const {
    InfoMap limit{{"maxBufferSize", Signed(limits.maxBufferSize)},
                  {"maxStorageBufferBindingSize", Signed(limits.maxStorageBufferBindingSize)},
                  {"maxStorageBuffersPerShaderStage", Signed(limits.maxStorageBuffersPerShaderStage)},
                  {"minStorageBufferOffsetAlignment", Signed(limits.minStorageBufferOffsetAlignment)},
                  {"minUniformBufferOffsetAlignment", Signed(limits.minUniformBufferOffsetAlignment)},
                  {"maxComputeWorkgroupStorageSize", Signed(limits.maxComputeWorkgroupStorageSize)},
                  {"maxComputeInvocationsPerWorkgroup", Signed(limits.maxComputeInvocationsPerWorkgroup)},
                  {"maxComputeWorkgroupSizeX", Signed(limits.maxComputeWorkgroupSizeX)},
                  {"maxComputeWorkgroupSizeY", Signed(limits.maxComputeWorkgroupSizeY)},
                  {"maxComputeWorkgroupSizeZ", Signed(limits.maxComputeWorkgroupSizeZ)},
                  {"maxComputeWorkgroupsPerDimension", Signed(limits.maxComputeWorkgroupsPerDimension)}};
    InfoMap feature{{"shader-f16", Has(WGPUFeatureName_ShaderF16)},
                    {"subgroups", Has(WGPUFeatureName_Subgroups)},
                    {"timestamp-query", Has(WGPUFeatureName_TimestampQuery)}};
    return {{"name", tvm::ffi::String(Text(info.device))},
            {"vendor", tvm::ffi::String(Vendor())},
            {"vendor_id", static_cast<int64_t>(info.vendorID)},
            {"driver", tvm::ffi::String(Text(info.description))},
            {"type", tvm::ffi::String(TypeName(info.adapterType))},
            {"backend", tvm::ffi::String(BackendName(info.backendType))},
            {"subgroup_min_size", static_cast<int64_t>(info.subgroupMinSize)},
            {"subgroup_max_size", static_cast<int64_t>(info.subgroupMaxSize)},
            {"limits", limit},
            {"features", feature}};
  }

 private:
  static int64_t Signed(uint64_t value) { return static_cast<int64_t>(std::min<uint64_t>(value, INT64_MAX)); }

  static const char* TypeName(WGPUAdapterType type) {
    switch (type) {
      case WGPUAdapterType_DiscreteGPU:
        return "discrete";
      case WGPUAdapterType_IntegratedGPU:
        return "integrated";
      case WGPUAdapterType_CPU:
        return "software";
      default:
        return "unknown";
    }
  }

  static const char* BackendName(WGPUBackendType type) {
    switch (type) {
      case WGPUBackendType_Vulkan:
        return "vulkan";
      case WGPUBackendType_Metal:
        return "metal";
      case WGPUBackendType_D3D12:
        return "dx12";
      default:
        return "other";
    }
  }

  std::string Vendor() const {
    switch (info.vendorID) {  // the identifiers of PCI, and Mesa's among those of Khronos
      case 0x1002:
        return "amd";
      case 0x10DE:
        return "nvidia";
      case 0x8086:
        return "intel";
      case 0x106B:
        return "apple";
      case 0x13B5:
        return "arm";
      case 0x5143:
        return "qualcomm";
      case 0x10005:
        return "mesa";
      default:
        return Text(info.vendor).empty() ? "unknown" : Text(info.vendor);
    }
  }

  // Every adapter that could run kernels, the best first. OpenGL is left out: its compute shaders lack too much.
  static std::vector<WGPUAdapter> Adapters() {
    WGPUInstanceExtras extras{};
    extras.chain.sType = static_cast<WGPUSType>(WGPUSType_InstanceExtras);
    extras.backends = WGPUInstanceBackend_Primary;
    WGPUInstanceDescriptor wanted = WGPU_INSTANCE_DESCRIPTOR_INIT;
    wanted.nextInChain = &extras.chain;
    WGPUInstance instance = wgpuCreateInstance(&wanted);
    WGPUInstanceEnumerateAdapterOptions options{};
    options.backends = WGPUInstanceBackend_Primary;
    std::vector<WGPUAdapter> adapters(wgpuInstanceEnumerateAdapters(instance, &options, nullptr));
    wgpuInstanceEnumerateAdapters(instance, &options, adapters.data());
    if (adapters.empty()) {
      TVM_FFI_THROW(RuntimeError)
          << "There is no WebGPU adapter: no driver for Vulkan, Metal or DirectX 12 was found; install the GPU's driver "
             "(a software one on Debian: apt install mesa-vulkan-drivers).";
    }
    auto rank = [](WGPUAdapter adapter) {
      WGPUAdapterInfo info = WGPU_ADAPTER_INFO_INIT;
      wgpuAdapterGetInfo(adapter, &info);
      WGPUAdapterType type = info.adapterType;
      wgpuAdapterInfoFreeMembers(info);
      return type == WGPUAdapterType_DiscreteGPU ? 0 : type == WGPUAdapterType_IntegratedGPU ? 1
             : type == WGPUAdapterType_CPU       ? 3
                                                 : 2;
    };
    std::stable_sort(adapters.begin(), adapters.end(),
                     [&](WGPUAdapter a, WGPUAdapter b) { return rank(a) < rank(b); });
    return adapters;
  }

  // The first, or what LLMSERVE_WEBGPU_ADAPTER names by its place in the order or a part of its name.
  static WGPUAdapter Choose(const std::vector<WGPUAdapter>& adapters) {
    const char* variable = std::getenv("LLMSERVE_WEBGPU_ADAPTER");
    std::string wanted = variable == nullptr ? "" : Lower(variable);
    if (wanted.empty()) return adapters[0];
    bool number = std::all_of(wanted.begin(), wanted.end(), [](unsigned char c) { return std::isdigit(c); });
    std::string names;
    for (size_t i = 0; i < adapters.size(); ++i) {
      WGPUAdapterInfo info = WGPU_ADAPTER_INFO_INIT;
      wgpuAdapterGetInfo(adapters[i], &info);
      std::string name = Text(info.device) + " (" + BackendName(info.backendType) + ")";
      wgpuAdapterInfoFreeMembers(info);
      if (number ? wanted == std::to_string(i) : Lower(name).find(wanted) != std::string::npos) return adapters[i];
      names += (i == 0 ? "" : ", ") + std::to_string(i) + ": " + name;
    }
    TVM_FFI_THROW(ValueError) << "LLMSERVE_WEBGPU_ADAPTER is " << variable << ", but there is only " << names << ".";
  }

  static std::string Lower(std::string text) {
    for (char& c : text) c = static_cast<char>(std::tolower(static_cast<unsigned char>(c)));
    return text;
  }

  void Open(WGPUAdapter adapter) {
    WGPULimits all = WGPU_LIMITS_INIT;
    wgpuAdapterGetLimits(adapter, &all);
    all.nextInChain = nullptr;
    all.maxImmediateSize = 0;  // belongs to a feature that is not asked for
    std::vector<WGPUFeatureName> features;
    for (WGPUFeatureName feature : {WGPUFeatureName_ShaderF16, WGPUFeatureName_Subgroups,
                                    WGPUFeatureName_TimestampQuery}) {
      if (wgpuAdapterHasFeature(adapter, feature)) features.push_back(feature);
    }
    WGPUDeviceDescriptor wanted = WGPU_DEVICE_DESCRIPTOR_INIT;
    wanted.requiredLimits = &all;
    wanted.requiredFeatures = features.data();
    wanted.requiredFeatureCount = features.size();
    wanted.uncapturedErrorCallbackInfo.callback = [](WGPUDevice const*, WGPUErrorType type, WGPUStringView message,
                                                     void*, void*) {
      if (refusal_.empty()) {  // the first is the cause of the others
        refusal_ = Text(message);
        // wgpu-native files it under validation.
        bool memory = refusal_.find("Not enough memory left") != std::string::npos;
        out_of_memory_ = memory || type == WGPUErrorType_OutOfMemory;
      }
    };
    wanted.deviceLostCallbackInfo.mode = WGPUCallbackMode_AllowSpontaneous;
    wanted.deviceLostCallbackInfo.userdata1 = this;
    wanted.deviceLostCallbackInfo.callback = [](WGPUDevice const*, WGPUDeviceLostReason, WGPUStringView message,
                                                void* self, void*) {
      auto* lost = static_cast<WebGPUDevice*>(self);
      std::lock_guard<std::mutex> lock(lost->lost_mutex_);
      lost->lost_message_ = Text(message);
      lost->lost_ = true;
    };
    struct Answer {
      WGPUDevice device = nullptr;
      std::string message;
    } answer;
    WGPURequestDeviceCallbackInfo callback = WGPU_REQUEST_DEVICE_CALLBACK_INFO_INIT;
    callback.mode = WGPUCallbackMode_AllowSpontaneous;
    callback.userdata1 = &answer;
    callback.callback = [](WGPURequestDeviceStatus, WGPUDevice device, WGPUStringView message, void* to, void*) {
      *static_cast<Answer*>(to) = {device, Text(message)};
    };
    wgpuAdapterRequestDevice(adapter, &wanted, callback);  // wgpu-native answers before it returns
    if (answer.device == nullptr) {
      TVM_FFI_THROW(RuntimeError) << "The WebGPU adapter " << Text(info.device) << " gives no device: "
                                  << answer.message;
    }
    device = answer.device;
  }

  static inline thread_local std::string refusal_;
  static inline thread_local bool out_of_memory_ = false;
  std::atomic<bool> lost_{false};
  mutable std::mutex lost_mutex_;
  std::string lost_message_;
};

}  // namespace llmserve
