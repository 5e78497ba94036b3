// A compiled kernel as TVM calls it: arguments to bindings and a uniform block, blocks to workgroups.
#pragma once

#include <algorithm>
#include <array>
#include <atomic>
#include <cstring>
#include <mutex>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

#include "module.h"
#include "webgpu_memory.h"
#include "webgpu_pipeline.h"
#include "webgpu_queue.h"

namespace llmserve {

// A kernel's arguments, bound; the pipeline is the one that they were bound for.
struct Bound {
  WGPUBindGroup group = nullptr;
  const Pipeline* pipeline = nullptr;
};

// Bound arguments, kept from step to step. Addresses are never given out twice, so an entry cannot come to mean other
// memory; those of freed memory are dropped, since they would keep it.
class BindGroups {
 public:
  using Key = std::vector<uint64_t>;  // the kernel, then its tensors' addresses

  // What was added under `key`, if it is still there.
  const Bound* Find(const Key& key) const {
    auto entry = groups_.find(key);
    return entry == groups_.end() ? nullptr : &entry->second;
  }

  void Add(const Key& key, Bound bound, const std::vector<Span>& tensors) {
    if (++made % kMost == 0) {  // long-lived buffers would gather the keys of groups that were dropped for others
      for (auto& entry : groups_) wgpuBindGroupRelease(entry.second.group);
      groups_.clear();
      users_.clear();
    }
    groups_.emplace(key, bound);
    for (const Span& tensor : tensors) users_[tensor.base].push_back(key);
  }

  // The buffer at this address is gone.
  void Drop(uint64_t base) {
    auto users = users_.find(base);
    if (users == users_.end()) return;
    for (const Key& key : users->second) {
      if (auto entry = groups_.find(key); entry != groups_.end()) {
        wgpuBindGroupRelease(entry->second.group);
        groups_.erase(entry);
      }
    }
    users_.erase(users);
  }

  uint64_t made = 0;

 private:
  static constexpr uint64_t kMost = 8192;

  struct Hash {
    size_t operator()(const Key& key) const {
      uint64_t hash = 0xcbf29ce484222325;
      for (uint64_t part : key) hash = (hash ^ part) * 0x100000001b3, hash ^= hash >> 29;
      return static_cast<size_t>(hash);
    }
  };
  std::unordered_map<Key, Bound, Hash> groups_;
  std::unordered_map<uint64_t, std::vector<Key>> users_;
};

// The device and all that is on it.
struct WebGPU {
  std::mutex mutex;
  WebGPUDevice gpu;
  WebGPUMemory memory{gpu};
  WebGPUQueue queue{gpu};
  BindGroups groups;

  // Never taken down: TVM frees tensors until the process ends.
  static WebGPU& Get() {
    static WebGPU* instance = new WebGPU();
    return *instance;
  }
};

// One kernel of a module. Its pipeline is made at the first call, or by `webgpu.compile`.
class Kernel {
 public:
  Kernel(KernelInfo info, std::string code)
      : info_(std::move(info)),
        code_(std::move(code)),
        shape_(info_, [this](const std::string& tag) { return TakeWrites(tag); }),
        id_(next_id_++) {
    for (size_t i = 0; i < info_.arg_types.size(); ++i) {
      (IsPointer(info_.arg_types[i]) ? tensors_ : scalars_).push_back(i);
    }
    if (writes_.size() != tensors_.size()) {
      TVM_FFI_THROW(ValueError) << "Kernel " << info_.name << " does not say which of its tensors it writes.";
    }
  }

  const std::string& code() const { return code_; }
  const std::vector<bool>& writes() const { return writes_; }

  void Compile(const WebGPUDevice& gpu) { Ready(gpu, false); }

  void Call(tvm::ffi::PackedArgs packed) {
    const TVMFFIAny* args = RawArguments(packed, info_, shape_.num_args());
    LaunchShape::Extent extent = shape_.Extract(args);
    if (extent.empty()) return;
    WebGPU& gpu = WebGPU::Get();
    std::lock_guard<std::mutex> lock(gpu.mutex);
    const uint64_t most = gpu.gpu.limits.maxComputeWorkgroupsPerDimension;
    uint64_t x = extent.grid[0], y = extent.grid[1], z = 1;
    if (x > most) {  // the kernel puts its number together from x and z
      z = (x + most - 1) / most;
      x = (x + z - 1) / z;
    }
    if (extent.grid[2] != 1 || y > most || z > most || extent.grid[0] > UINT32_MAX) {
      TVM_FFI_THROW(ValueError) << "Kernel " << info_.name << " is launched with " << extent.grid[0] << " x "
                                << extent.grid[1] << " x " << extent.grid[2] << " blocks; WebGPU takes " << most
                                << " in y and none in z.";
    }
    BindGroups::Key key{id_};
    for (size_t i : tensors_) key.push_back(reinterpret_cast<uint64_t>(PointerArgument(args[i], info_, i)));
    std::vector<uint32_t> scalars;
    for (size_t i : scalars_) scalars.push_back(Scalar(info_.arg_types[i], args[i]));
    // Kernels return if their block's number is greater than this; the blocks that filling up x adds must return too.
    scalars.push_back(static_cast<uint32_t>(extent.grid[0] - 1));

    const Bound* found = gpu.groups.Find(key);
    Bound bound = found != nullptr ? *found : Bind(gpu, key);
    std::array<uint32_t, 3> workgroups{static_cast<uint32_t>(x), static_cast<uint32_t>(y), static_cast<uint32_t>(z)};
    std::vector<Traced::Binding> bindings;
    if (gpu.queue.trace.on()) {
      for (const Span& span : Spans(gpu.memory, key)) {
        bindings.push_back({span.base, span.buffer_bytes, span.offset, span.size});
      }
    }
    gpu.queue.Dispatch(*bound.pipeline, bound.group, scalars, workgroups, std::move(bindings));
  }

 private:
  bool TakeWrites(const std::string& tag) {
    const std::string prefix = "paramWriteAccess:";
    if (tag.compare(0, prefix.size(), prefix) != 0) return false;
    for (char c : tag.substr(prefix.size())) {
      if (c == '0' || c == '1') writes_.push_back(c == '1');
    }
    return true;
  }

  std::vector<Span> Spans(const WebGPUMemory& memory, const BindGroups::Key& key) const {
    std::vector<Span> spans;
    for (size_t i = 0; i < tensors_.size(); ++i) {
      spans.push_back(memory.Binding(reinterpret_cast<void*>(key[i + 1]), info_.name, tensors_[i]));
    }
    return spans;
  }

  Bound Bind(WebGPU& gpu, const BindGroups::Key& key) {
    std::vector<Span> spans = Spans(gpu.memory, key);
    const Pipeline& pipeline = Ready(gpu.gpu, Aliased(spans));
    Bound bound{MakeBindGroup(gpu.gpu, pipeline, spans, gpu.queue.uniforms()), &pipeline};
    gpu.groups.Add(key, bound, spans);
    return bound;
  }

  // Whether a buffer is read through one argument and written through another: WebGPU forbids that, while a buffer that
  // every argument may write is allowed.
  bool Aliased(const std::vector<Span>& spans) const {
    for (size_t i = 0; i < spans.size(); ++i) {
      for (size_t j = 0; j < i; ++j) {
        if (spans[i].buffer == spans[j].buffer && writes_[i] != writes_[j]) return true;
      }
    }
    return false;
  }

  const Pipeline& Ready(const WebGPUDevice& gpu, bool aliased) {
    std::lock_guard<std::mutex> lock(compiling_);
    Pipeline& pipeline = aliased ? aliased_ : plain_;
    if (pipeline.pipeline == nullptr) {
      std::string code = code_;
      std::vector<bool> writes = writes_;
      if (aliased) {
        const std::string read = "var<storage, read>", write = "var<storage, read_write>";
        for (size_t at = 0; (at = code.find(read, at)) != std::string::npos; at += write.size()) {
          code.replace(at, read.size(), write);
        }
        writes.assign(writes.size(), true);
      }
      pipeline = MakePipeline(gpu, info_.name, code, writes, scalars_.size() + 1);
    }
    return pipeline;
  }

  uint32_t Scalar(DLDataType type, const TVMFFIAny& value) const {
    uint32_t word;
    if (type.code == kDLFloat && type.bits == 32) {
      float real = static_cast<float>(RealArgument(value));
      std::memcpy(&word, &real, sizeof(word));
      return word;
    }
    int64_t integer = IntegerArgument(value);
    bool fits = type.code == kDLInt ? integer == static_cast<int32_t>(integer)
                                    : (type.code == kDLUInt || type.code == kDLBool) && integer >> 32 == 0;
    if (!fits) {
      TVM_FFI_THROW(ValueError) << "Kernel " << info_.name << " is given the scalar " << integer
                                << ", which is no 32-bit number as WGSL has them.";
    }
    return static_cast<uint32_t>(integer);
  }

  static inline std::atomic<uint64_t> next_id_{0};
  KernelInfo info_;
  std::string code_;
  std::vector<bool> writes_;
  LaunchShape shape_;
  uint64_t id_;
  std::vector<size_t> tensors_;
  std::vector<size_t> scalars_;
  std::mutex compiling_;
  Pipeline plain_;
  Pipeline aliased_;
};

}  // namespace llmserve
