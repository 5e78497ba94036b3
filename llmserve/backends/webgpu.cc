// TVM's webgpu device on wgpu-native: memory, copies, and the loader of compiled WGSL kernels. Everything is done under
// one lock, in the order of the calls: there is one queue.
//
// Environment: LLMSERVE_WEBGPU_ADAPTER chooses the adapter; LLMSERVE_WEBGPU_CHECKS=1 compiles kernels with checks of
// their accesses (slower; for finding a kernel that leaves its tensors).
#include <tvm/ffi/extra/module.h>
#include <tvm/ffi/reflection/registry.h>
#include <tvm/runtime/device_api.h>

#include <atomic>
#include <memory>
#include <mutex>
#include <thread>

#include "module.h"
#include "webgpu_kernel.h"

namespace llmserve {
namespace {

using tvm::Device;
using tvm::ffi::Any;
using tvm::ffi::Array;
using tvm::ffi::Bytes;
using tvm::ffi::Function;
using tvm::ffi::Module;
using tvm::ffi::ModuleObj;
using tvm::ffi::Optional;
using tvm::ffi::PackedArgs;
using tvm::ffi::String;

class WebGPUDeviceAPI final : public tvm::runtime::DeviceAPI {
 public:
  void SetDevice(Device device) final { Check(device); }

  void GetAttr(Device device, tvm::runtime::DeviceAttrKind kind, Any* result) final {
    if (kind == tvm::runtime::kExist) {
      *result = static_cast<int64_t>(device.device_id == 0 && Exists());
      return;
    }
    Check(device);
    const WebGPUDevice& gpu = WebGPU::Get().gpu;
    const WGPULimits& limits = gpu.limits;
    switch (kind) {
      case tvm::runtime::kMaxThreadsPerBlock:
        *result = static_cast<int64_t>(limits.maxComputeInvocationsPerWorkgroup);
        break;
      case tvm::runtime::kWarpSize:
        *result = static_cast<int64_t>(std::max<uint32_t>(gpu.info.subgroupMinSize, 1));
        break;
      case tvm::runtime::kMaxSharedMemoryPerBlock:
        *result = static_cast<int64_t>(limits.maxComputeWorkgroupStorageSize);
        break;
      case tvm::runtime::kDeviceName:
        *result = String(Text(gpu.info.device));
        break;
      case tvm::runtime::kMaxThreadDimensions:
        *result = String("[" + std::to_string(limits.maxComputeWorkgroupSizeX) + ", " +
                         std::to_string(limits.maxComputeWorkgroupSizeY) + ", " +
                         std::to_string(limits.maxComputeWorkgroupSizeZ) + "]");
        break;
      case tvm::runtime::kDriverVersion:
        *result = String(Text(gpu.info.description));
        break;
      default:  // WebGPU does not tell, the amount of memory included
        *result = nullptr;
    }
  }

  void* AllocDataSpace(Device device, size_t bytes, size_t, DLDataType) final {
    Check(device);
    WebGPU& gpu = WebGPU::Get();
    std::lock_guard<std::mutex> lock(gpu.mutex);
    return gpu.memory.Allocate(bytes);
  }

  void FreeDataSpace(Device, void* pointer) final {
    WebGPU& gpu = WebGPU::Get();
    std::lock_guard<std::mutex> lock(gpu.mutex);
    gpu.memory.Free(pointer);
    gpu.groups.Drop(reinterpret_cast<uint64_t>(pointer));
  }

  void StreamSync(Device device, TVMStreamHandle) final {
    Check(device);
    WebGPU& gpu = WebGPU::Get();
    std::lock_guard<std::mutex> lock(gpu.mutex);
    gpu.queue.Wait();
  }

  // Addresses are virtual ones, see webgpu_memory.h.
  bool SupportsDevicePointerArithmeticsOnHost() final { return true; }

  static WebGPUDeviceAPI* Global() {
    static WebGPUDeviceAPI* instance = new WebGPUDeviceAPI();
    return instance;
  }

 protected:
  void CopyDataFromTo(const void* from, size_t from_offset, void* to, size_t to_offset, size_t bytes, Device from_device,
                      Device to_device, DLDataType, TVMStreamHandle) final {
    if (bytes == 0) return;
    WebGPU& gpu = WebGPU::Get();
    std::lock_guard<std::mutex> lock(gpu.mutex);
    const char* source = static_cast<const char*>(from) + from_offset;
    char* target = static_cast<char*>(to) + to_offset;
    bool out = from_device.device_type == kDLWebGPU, in = to_device.device_type == kDLWebGPU;
    if (in && out) {
      gpu.queue.CopyWithin(gpu.memory.Bytes(target, bytes), gpu.memory.Bytes(source, bytes));
    } else if (in && to_device.device_type == kDLWebGPU && from_device.device_type == kDLCPU) {
      gpu.queue.CopyIn(gpu.memory.Bytes(target, bytes), source);
    } else if (out && to_device.device_type == kDLCPU) {
      gpu.queue.CopyOut(target, gpu.memory.Bytes(source, bytes));
    } else {
      TVM_FFI_THROW(ValueError) << "WebGPU memory is copied from and to the CPU's only.";
    }
  }

 private:
  static void Check(Device device) {
    if (device.device_id != 0) {
      TVM_FFI_THROW(ValueError) << "There is one WebGPU device, webgpu:0; LLMSERVE_WEBGPU_ADAPTER chooses the adapter "
                                   "behind it.";
    }
  }

  static bool Exists() {
    try {
      WebGPU::Get();
      return true;
    } catch (const tvm::ffi::Error&) {
      return false;
    }
  }
};

class WebGPUModule final : public ModuleObj {
 public:
  explicit WebGPUModule(const Bytes& bytes) : bytes_(bytes) {
    ByteReader reader(bytes.data(), bytes.size());
    std::map<std::string, KernelInfo> infos = reader.Kernels();
    for (size_t left = reader.Count(16); left > 0; --left) {
      std::string name = reader.Text(), code = reader.Text();
      auto info = infos.find(name);
      if (info == infos.end()) {
        TVM_FFI_THROW(ValueError) << "The library has code and no description of kernel " << name << ".";
      }
      info->second.name = name;
      kernels_[name] = std::make_shared<Kernel>(info->second, std::move(code));
    }
  }

  const char* kind() const final { return "webgpu"; }
  int GetPropertyMask() const final { return Module::kBinarySerializable | Module::kRunnable; }
  Bytes SaveToBytes() const final { return bytes_; }

  // A kernel by its name; `webgpu.compile(threads)`, which compiles all kernels now; and `webgpu.kernels()`, which gives
  // each one's WGSL and, for its tensors in order, whether it writes them.
  Optional<Function> GetFunction(const String& name) final {
    if (auto kernel = kernels_.find(name); kernel != kernels_.end()) {
      return Function::FromPacked([kernel = kernel->second](PackedArgs args, Any*) { kernel->Call(args); });
    }
    if (name == "webgpu.compile") {
      return Function::FromTyped([kernels = kernels_](int64_t threads) { CompileAll(kernels, threads); });
    }
    if (name == "webgpu.kernels") return Function::FromTyped([kernels = kernels_] { return DescribeAll(kernels); });
    return std::nullopt;
  }

  // The WGSL of all kernels.
  String InspectSource(const String&) const final {
    std::string source;
    for (const auto& kernel : kernels_) source += kernel.second->code();
    return source;
  }

 private:
  using Kernels = std::map<std::string, std::shared_ptr<Kernel>>;

  static InfoMap DescribeAll(const Kernels& kernels) {
    InfoMap all;
    for (const auto& [name, kernel] : kernels) {
      Array<bool> writes;
      for (bool write : kernel->writes()) writes.push_back(write);
      all.Set(name, InfoMap{{"code", String(kernel->code())}, {"writes", writes}});
    }
    return all;
  }

  static void CompileAll(const Kernels& kernels, int64_t threads) {
    const WebGPUDevice& gpu = WebGPU::Get().gpu;
    std::atomic<size_t> next{0};
    std::vector<std::shared_ptr<Kernel>> todo;
    for (const auto& kernel : kernels) todo.push_back(kernel.second);
    std::mutex mutex;
    Optional<tvm::ffi::Error> failure;
    auto work = [&] {
      for (size_t i; (i = next++) < todo.size();) {
        try {
          todo[i]->Compile(gpu);
        } catch (const tvm::ffi::Error& error) {
          std::lock_guard<std::mutex> lock(mutex);
          failure = error;
        }
      }
    };
    std::vector<std::thread> others;
    for (int64_t i = 1; i < std::min<int64_t>(threads, 64); ++i) others.emplace_back(work);
    work();
    for (std::thread& other : others) other.join();
    if (failure.has_value()) throw failure.value();
  }

  Bytes bytes_;
  Kernels kernels_;
};

InfoMap Statistics() {
  WebGPU& gpu = WebGPU::Get();
  std::lock_guard<std::mutex> lock(gpu.mutex);
  auto number = [](uint64_t value) { return static_cast<int64_t>(value); };
  return {{"allocated_bytes", number(gpu.memory.bytes())}, {"peak_bytes", number(gpu.memory.peak())},
          {"allocations", number(gpu.memory.count())},     {"dispatches", number(gpu.queue.dispatches)},
          {"submissions", number(gpu.queue.submissions)},  {"bind_groups", number(gpu.groups.made)}};
}

void StartTrace() {
  WebGPU& gpu = WebGPU::Get();
  std::lock_guard<std::mutex> lock(gpu.mutex);
  gpu.queue.Flush();
  gpu.queue.trace.Start();
}

// One map for each dispatch since StartTrace, in order.
Array<InfoMap> StopTrace() {
  WebGPU& gpu = WebGPU::Get();
  std::lock_guard<std::mutex> lock(gpu.mutex);
  gpu.queue.Flush();
  Array<InfoMap> dispatches;
  auto numbers = [](const auto& values) {
    Array<int64_t> all;
    for (auto value : values) all.push_back(static_cast<int64_t>(value));
    return all;
  };
  for (const Traced& one : gpu.queue.trace.Stop()) {
    Array<Array<int64_t>> bindings;
    for (const Traced::Binding& binding : one.bindings) {
      bindings.push_back(numbers(std::array{binding.base, binding.buffer_bytes, binding.offset, binding.bytes}));
    }
    dispatches.push_back({{"kernel", String(one.kernel)},
                          {"workgroups", numbers(one.workgroups)},
                          {"scalars", numbers(one.scalars)},
                          {"bindings", bindings},
                          {"microseconds", one.microseconds}});
  }
  return dispatches;
}

TVM_FFI_STATIC_INIT_BLOCK() {
  namespace refl = tvm::ffi::reflection;
  refl::GlobalDef()
      .def("device_api.webgpu", [] { return static_cast<void*>(WebGPUDeviceAPI::Global()); })
      .def("ffi.Module.load_from_bytes.webgpu",
           [](const Bytes& bytes) { return Module(tvm::ffi::make_object<WebGPUModule>(bytes)); })
      .def("llmserve.webgpu.info", [] { return WebGPU::Get().gpu.Describe(); })
      .def("llmserve.webgpu.statistics", Statistics)
      .def("llmserve.webgpu.start_trace", StartTrace)
      .def("llmserve.webgpu.stop_trace", StopTrace);
}

}  // namespace
}  // namespace llmserve
