// A captured sequence of kernels, launched as one: the counterpart of TVM's CUDA graphs, behind the same builtins, which is
// what its compiler calls. Where a machine has CUDA's, those stay.
#pragma once

#include <tvm/ffi/container/array.h>
#include <tvm/ffi/container/shape.h>
#include <tvm/runtime/vm/vm.h>

#include <map>
#include <utility>
#include <vector>

#include "hip_api.h"

namespace llmserve::hip {

namespace vm = tvm::runtime::vm;
using tvm::ffi::Any;
using tvm::ffi::AnyView;
using tvm::ffi::Array;
using tvm::ffi::ObjectRef;
using tvm::ffi::Shape;

// While it lives, this thread's work on the device is written down instead of run.
class Capture {
 public:
  explicit Capture(int device) : device_(device) {
    api_.Check(api_.hipStreamCreate(&stream_), "Making a stream to capture");
    TVM_FFI_CHECK_SAFE_CALL(
        TVMFFIEnvSetStream(kDeviceType, device_, stream_, reinterpret_cast<void**>(&previous_)));
    hipError_t status = api_.hipStreamBeginCapture(stream_, static_cast<hipStreamCaptureMode>(kCaptureGlobal));
    if (status != hipSuccess) {
      Restore();
      api_.Check(status, "Beginning to capture");
    }
  }

  // The graph of what was done. Not called where doing it failed; what was captured then goes with the stream.
  hipGraph_t End() {
    hipGraph_t graph = nullptr;
    ended_ = true;
    api_.Check(api_.hipStreamEndCapture(stream_, &graph), "Capturing a graph");
    return graph;
  }

  ~Capture() {
    if (!ended_) {
      hipGraph_t graph = nullptr;
      if (api_.hipStreamEndCapture(stream_, &graph) == hipSuccess && graph != nullptr) api_.hipGraphDestroy(graph);
      api_.hipGetLastError();
    }
    Restore();
  }

  Capture(const Capture&) = delete;
  Capture& operator=(const Capture&) = delete;

 private:
  void Restore() {
    TVMFFIEnvSetStream(kDeviceType, device_, previous_, nullptr);
    api_.hipStreamDestroy(stream_);
  }

  const Api& api_ = Api::Get();
  int device_;
  hipStream_t stream_ = nullptr;
  hipStream_t previous_ = nullptr;
  bool ended_ = false;
};

// The graphs and the memory of one virtual machine.
class HipGraphsNode : public vm::VMExtensionNode {
 public:
  // Launches the graph of `function` for these shapes; the first time, runs it once, so that kernels are loaded, and
  // captures it. Returns what the function returned: its tensors are the same at every launch.
  ObjectRef RunOrCapture(vm::VirtualMachine* machine, const ObjectRef& function, const Any& arguments, int64_t index,
                         const tvm::ffi::Optional<Shape>& shape) {
    const Api& api = Api::Get();
    int device;
    api.Check(api.hipGetDevice(&device), "Asking for the current device");
    std::vector<int64_t> key{index};
    if (shape.has_value()) key.insert(key.end(), shape.value().begin(), shape.value().end());
    if (auto graph = graphs_.find(key); graph != graphs_.end()) {
      api.Check(api.hipGraphLaunch(graph->second.executable, CurrentStream(device)), "Launching a graph");
      return graph->second.results;
    }
    Array<Any> tuple = arguments.cast<Array<Any>>();
    std::vector<AnyView> views(tuple.begin(), tuple.end());
    auto invoke = [&] {
      Any result;
      machine->InvokeClosurePacked(function, tvm::ffi::PackedArgs(views.data(), static_cast<int32_t>(views.size())),
                                   &result);
      return result;
    };
    invoke();
    Graph made;
    hipGraph_t graph;
    {
      Capture capture(device);
      made.results = invoke().cast<ObjectRef>();
      graph = capture.End();
    }
    hipError_t status = api.hipGraphInstantiate(&made.executable, graph, nullptr, nullptr, 0);
    api.hipGraphDestroy(graph);
    api.Check(status, "Making a graph ready");
    // What was captured has not run: the results are those of the run before it.
    return graphs_.emplace(key, made).first->second.results;
  }

  // The memory that `function` allocates, allocated once.
  ObjectRef CachedAllocation(vm::VirtualMachine* machine, const ObjectRef& function, int64_t index) {
    auto found = memory_.find(index);
    if (found == memory_.end()) {
      Any result;
      machine->InvokeClosurePacked(function, tvm::ffi::PackedArgs(nullptr, 0), &result);
      found = memory_.emplace(index, result.cast<ObjectRef>()).first;
    }
    return found->second;
  }

  ~HipGraphsNode() {
    for (auto& [key, graph] : graphs_) Api::Get().hipGraphExecDestroy(graph.executable);
  }

  static constexpr const bool _type_mutable = true;
  TVM_FFI_DECLARE_OBJECT_INFO_FINAL("llmserve.HipGraphs", HipGraphsNode, vm::VMExtensionNode);

 private:
  struct Graph {
    ObjectRef results;
    hipGraphExec_t executable = nullptr;
  };
  std::map<std::vector<int64_t>, Graph> graphs_;
  std::map<int64_t, ObjectRef> memory_;
};

class HipGraphs : public vm::VMExtension {
 public:
  TVM_FFI_DEFINE_OBJECT_REF_METHODS_NULLABLE(HipGraphs, vm::VMExtension, HipGraphsNode);
  static HipGraphs Create() { return HipGraphs(tvm::ffi::make_object<HipGraphsNode>()); }
};

}  // namespace llmserve::hip
