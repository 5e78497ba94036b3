// TVM's rocm device on AMD's HIP: memory, copies, streams, timers, the loader of compiled kernels, and graphs. It keeps to
// what TVM's CUDA runtime does, call by call; libamdhip64 is looked for when a device is first asked for.
#include <tvm/ffi/container/map.h>
#include <tvm/ffi/reflection/registry.h>
#include <tvm/runtime/device_api.h>
#include <tvm/runtime/timer.h>

#include <algorithm>
#include <cstring>
#include <string>
#include <vector>

#include "hip_api.h"
#include "hip_graph.h"
#include "hip_module.h"

namespace llmserve::hip {
namespace {

using tvm::Device;

void Use(int device) {
  const Api& api = Api::Get();
  api.Check(api.hipSetDevice(device), "Using rocm:" + std::to_string(device));
}

int DeviceCount() {
  int count = 0;
  return Api::Present() && Api::Get().hipGetDeviceCount(&count) == hipSuccess ? count : 0;
}

// Scratch memory of kernels' hosts: taken and given back in turns, by one thread, the same sizes over and over.
class Workspaces {
 public:
  void* Take(tvm::runtime::DeviceAPI* api, Device device, size_t size) {
    Piece* best = nullptr;
    for (Piece& piece : pieces_) {
      bool fits = piece.free && piece.device == device.device_id && piece.size >= size;
      if (fits && (best == nullptr || piece.size < best->size)) best = &piece;
    }
    if (best == nullptr) {
      void* data = api->AllocDataSpace(device, size, tvm::runtime::kTempAllocaAlignment, {});
      pieces_.push_back({device.device_id, size, data, true});
      best = &pieces_.back();
    }
    best->free = false;
    return best->data;
  }

  void GiveBack(void* data) {
    for (Piece& piece : pieces_) {
      if (piece.data == data) piece.free = true;
    }
  }

 private:
  struct Piece {
    int device;
    size_t size;
    void* data;
    bool free;
  };
  std::vector<Piece> pieces_;
};

class HipDeviceAPI final : public tvm::runtime::DeviceAPI {
 public:
  void SetDevice(Device device) final { Use(device.device_id); }

  void GetAttr(Device device, tvm::runtime::DeviceAttrKind kind, Any* result) final {
    const int id = device.device_id;
    if (kind == tvm::runtime::kExist) {
      *result = static_cast<int64_t>(id < DeviceCount());
      return;
    }
    const Api& api = Api::Get();
    auto attribute = [&](int which) { return static_cast<int64_t>(api.Attribute(which, id)); };
    switch (kind) {
      case tvm::runtime::kMaxThreadsPerBlock:
        *result = attribute(kMaxThreadsPerBlock);
        break;
      case tvm::runtime::kWarpSize:
        *result = attribute(kWarpSize);
        break;
      case tvm::runtime::kMaxSharedMemoryPerBlock:
        *result = attribute(kMaxSharedMemoryPerBlock);
        break;
      case tvm::runtime::kComputeVersion:
        *result = String(std::to_string(attribute(kComputeCapabilityMajor)) + "." +
                         std::to_string(attribute(kComputeCapabilityMinor)));
        break;
      case tvm::runtime::kDeviceName:
        *result = String(api.Name(id));
        break;
      case tvm::runtime::kMaxClockRate:
        *result = attribute(kClockRate);
        break;
      case tvm::runtime::kMultiProcessorCount:
        *result = attribute(kMultiprocessorCount);
        break;
      case tvm::runtime::kMaxThreadDimensions:
        *result = String("[" + std::to_string(attribute(kMaxBlockDimX)) + ", " +
                         std::to_string(attribute(kMaxBlockDimY)) + ", " + std::to_string(attribute(kMaxBlockDimZ)) +
                         "]");
        break;
      case tvm::runtime::kMaxRegistersPerBlock:
        *result = attribute(kMaxRegistersPerBlock);
        break;
      case tvm::runtime::kGcnArch:
        *result = String(api.Architecture(id));
        break;
      case tvm::runtime::kApiVersion:
        *result = Version(api.hipRuntimeGetVersion);
        break;
      case tvm::runtime::kDriverVersion:
        *result = Version(api.hipDriverGetVersion);
        break;
      case tvm::runtime::kL2CacheSizeBytes:
        *result = attribute(kL2CacheSize);
        break;
      case tvm::runtime::kTotalGlobalMemory:
        *result = Memory(id, false);
        break;
      case tvm::runtime::kAvailableGlobalMemory:
        *result = Memory(id, true);
        break;
      default:
        *result = nullptr;
    }
  }

  // What a target that is told to go by the device wants to know.
  void GetTargetProperty(Device device, const std::string& property, Any* result) final {
    const Api& api = Api::Get();
    if (property == "mcpu") *result = String(api.Architecture(device.device_id));
    if (property == "max_threads_per_block" || property == "max_num_threads") {
      *result = static_cast<int64_t>(api.Attribute(kMaxThreadsPerBlock, device.device_id));
    }
    if (property == "max_shared_memory_per_block") {
      *result = static_cast<int64_t>(api.Attribute(kMaxSharedMemoryPerBlock, device.device_id));
    }
    if (property == "thread_warp_size") {
      *result = static_cast<int64_t>(api.Attribute(kWarpSize, device.device_id));
    }
  }

  void* AllocDataSpace(Device device, size_t size, size_t alignment, DLDataType) final {
    if (alignment == 0 || 256 % alignment != 0) {
      TVM_FFI_THROW(ValueError) << "GPU memory begins at multiples of 256, which is none of " << alignment << ".";
    }
    const Api& api = Api::Get();
    void* data = nullptr;
    const std::string doing = "Allocating " + std::to_string(size) + " bytes";
    if (device.device_type == kDLROCMHost) {
      api.Check(api.hipHostMalloc(&data, size, 0), doing);
    } else {
      Use(device.device_id);
      api.Check(api.hipMalloc(&data, size), doing);
    }
    return data;
  }

  void FreeDataSpace(Device device, void* data) final {
    const Api& api = Api::Get();
    hipError_t status = hipSuccess;
    if (device.device_type == kDLROCMHost) {
      status = api.hipHostFree(data);
    } else if ((status = api.hipSetDevice(device.device_id)) == hipSuccess) {
      status = api.hipFree(data);
    }
    // At the end of the process HIP goes before the last tensors do.
    if (static_cast<int>(status) != kDeinitialized) api.Check(status, "Freeing memory");
  }

  TVMStreamHandle CreateStream(Device device) final {
    Use(device.device_id);
    hipStream_t stream;
    Api::Get().Check(Api::Get().hipStreamCreate(&stream), "Making a stream");
    return stream;
  }

  void FreeStream(Device device, TVMStreamHandle stream) final {
    Use(device.device_id);
    Api::Get().Check(Api::Get().hipStreamDestroy(static_cast<hipStream_t>(stream)), "Freeing a stream");
  }

  void StreamSync(Device device, TVMStreamHandle stream) final {
    Use(device.device_id);
    Api::Get().Check(Api::Get().hipStreamSynchronize(OrCurrent(stream, device)), "Waiting for the GPU");
  }

  void SyncStreamFromTo(Device device, TVMStreamHandle from, TVMStreamHandle to) final {
    Use(device.device_id);
    const Api& api = Api::Get();
    hipEvent_t event;
    api.Check(api.hipEventCreate(&event), "Making an event");
    hipError_t status = api.hipEventRecord(event, static_cast<hipStream_t>(from));
    if (status == hipSuccess) status = api.hipStreamWaitEvent(static_cast<hipStream_t>(to), event, 0);
    api.hipEventDestroy(event);  // HIP keeps it until it has come
    api.Check(status, "Having one stream wait for another");
  }

  void* AllocWorkspace(Device device, size_t size, DLDataType) final { return Mine().Take(this, device, size); }
  void FreeWorkspace(Device, void* data) final { Mine().GiveBack(data); }

  bool SupportsDevicePointerArithmeticsOnHost() final { return true; }

  static HipDeviceAPI* Global() {
    static HipDeviceAPI* instance = new HipDeviceAPI();
    return instance;
  }

 protected:
  void CopyDataFromTo(const void* from, size_t from_offset, void* to, size_t to_offset, size_t size, Device from_device,
                      Device to_device, DLDataType, TVMStreamHandle stream) final {
    if (size == 0) return;
    from = static_cast<const char*>(from) + from_offset;
    to = static_cast<char*>(to) + to_offset;
    bool out = from_device.device_type == kDLROCM, in = to_device.device_type == kDLROCM;
    if (!in && !out) {  // memory of the host, pinned or not
      std::memcpy(to, from, size);
      return;
    }
    const Device& own = out ? from_device : to_device;
    Use(own.device_id);
    const Api& api = Api::Get();
    hipStream_t queue = OrCurrent(stream, own);
    if (in && out && from_device.device_id != to_device.device_id) {
      api.Check(api.hipMemcpyPeerAsync(to, to_device.device_id, from, from_device.device_id, size, queue),
                "Copying between GPUs");
      return;
    }
    int kind = in && out ? kDeviceToDevice : out ? kDeviceToHost : kHostToDevice;
    api.Check(api.hipMemcpyAsync(to, from, size, static_cast<hipMemcpyKind>(kind), queue), "Copying");
  }

 private:
  // The pieces of a thread that ends are not freed: HIP may have gone by then.
  static Workspaces& Mine() {
    static thread_local Workspaces* mine = new Workspaces();
    return *mine;
  }

  static hipStream_t OrCurrent(TVMStreamHandle stream, Device device) {
    return stream != nullptr ? static_cast<hipStream_t>(stream) : CurrentStream(device.device_id);
  }

  static int64_t Version(hipError_t (*ask)(int*)) {
    int version = 0;
    Api::Get().Check(ask(&version), "Asking for HIP's version");
    return version;
  }

  static int64_t Memory(int device, bool available) {
    Use(device);
    size_t free = 0, total = 0;
    Api::Get().Check(Api::Get().hipMemGetInfo(&free, &total), "Asking for a device's memory");
    return static_cast<int64_t>(available ? free : total);
  }
};

// The GPU's own time between two places in a stream.
class HipTimer final : public tvm::runtime::TimerNode {
 public:
  explicit HipTimer(Device device) : device_(device) {
    Use(device.device_id);
    api_.Check(api_.hipEventCreate(&start_), "Making an event");
    api_.Check(api_.hipEventCreate(&stop_), "Making an event");
  }

  void Start() final { Record(start_); }
  void Stop() final { Record(stop_); }

  int64_t SyncAndGetElapsedNanos() final {
    api_.Check(api_.hipEventSynchronize(stop_), "Waiting for the GPU");
    float milliseconds = 0;
    api_.Check(api_.hipEventElapsedTime(&milliseconds, start_, stop_), "Timing");
    return static_cast<int64_t>(static_cast<double>(milliseconds) * 1e6);
  }

  ~HipTimer() {
    for (hipEvent_t event : {start_, stop_}) {
      if (event != nullptr) api_.hipEventDestroy(event);
    }
  }

  TVM_FFI_DECLARE_OBJECT_INFO_FINAL("llmserve.HipTimer", HipTimer, tvm::runtime::TimerNode);

 private:
  void Record(hipEvent_t event) {
    Use(device_.device_id);
    api_.Check(api_.hipEventRecord(event, CurrentStream(device_.device_id)), "Timing");
  }

  const Api& api_ = Api::Get();
  Device device_;
  hipEvent_t start_ = nullptr;
  hipEvent_t stop_ = nullptr;
};

using InfoMap = tvm::ffi::Map<String, Any>;

// For people (`doctor`), and for the compiler's target.
InfoMap Describe() {
  const Api& api = Api::Get();
  int count = DeviceCount();
  if (count == 0) TVM_FFI_THROW(RuntimeError) << "HIP finds no AMD GPU; `rocminfo` says what its driver sees.";
  Any memory;
  HipDeviceAPI::Global()->GetAttr({kDLROCM, 0}, tvm::runtime::kTotalGlobalMemory, &memory);
  auto number = [&](int attribute) { return static_cast<int64_t>(api.Attribute(attribute, 0)); };
  int version = 0;
  api.hipRuntimeGetVersion(&version);
  return {{"name", String(api.Name(0))},
          {"arch", String(api.Architecture(0))},
          {"vendor", String("amd")},
          {"driver", String("HIP " + std::to_string(version / 10000000) + "." + std::to_string(version / 100000 % 100))},
          {"type", String("gpu")},
          {"backend", String("hip")},
          {"devices", static_cast<int64_t>(count)},
          {"memory_bytes", memory},
          {"warp_size", number(kWarpSize)},
          {"limits", InfoMap{{"max_threads_per_block", number(kMaxThreadsPerBlock)},
                             {"max_shared_memory_per_block", number(kMaxSharedMemoryPerBlock)}}},
          {"features", InfoMap{}}};
}

// Takes the names that TVM's compiler calls for graphs, which are CUDA's. Not done at load: CUDA's runtime, loaded later,
// would end the process over names that are taken.
void EnableGraphs() {
  if (Function::GetGlobal("vm.builtin.cuda_graph.run_or_capture").has_value()) return;
  tvm::ffi::reflection::GlobalDef()
      .def_packed("vm.builtin.cuda_graph.run_or_capture",
                  [](PackedArgs args, Any* result) {
                    vm::VirtualMachine* machine = vm::VirtualMachine::GetContextPtr(args[0]);
                    Optional<Shape> shape;
                    if (args.size() > 4) shape = args[4].cast<Shape>();
                    *result = machine->GetOrCreateExtension<HipGraphs>()->RunOrCapture(
                        machine, args[1].cast<ObjectRef>(), args[2], args[3].cast<int64_t>(), shape);
                  })
      .def_packed("vm.builtin.cuda_graph.get_cached_alloc", [](PackedArgs args, Any* result) {
        vm::VirtualMachine* machine = vm::VirtualMachine::GetContextPtr(args[0]);
        *result = machine->GetOrCreateExtension<HipGraphs>()->CachedAllocation(machine, args[1].cast<ObjectRef>(),
                                                                                args[2].cast<int64_t>());
      });
}

TVM_FFI_STATIC_INIT_BLOCK() {
  namespace refl = tvm::ffi::reflection;
  auto api = [] { return static_cast<void*>(HipDeviceAPI::Global()); };
  refl::GlobalDef()
      .def("device_api.rocm", api)
      .def("device_api.rocm_host", api)
      .def("ffi.Module.load_from_bytes.hip",
           [](const Bytes& bytes) { return Module(tvm::ffi::make_object<HipModule>(bytes)); })
      .def("runtime.timer.rocm",
           [](Device device) { return tvm::runtime::Timer(tvm::ffi::make_object<HipTimer>(device)); })
      .def("llmserve.rocm.info", Describe)
      .def("llmserve.rocm.enable_graphs", EnableGraphs);
}

}  // namespace
}  // namespace llmserve::hip
