// The trace of dispatches and of the GPU's time for each: to look for time or mistakes, and to export kernels. While a
// trace is on, each kernel is a pass of its own and every batch is waited for, so it is slower.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <vector>

#include "webgpu_device.h"

namespace llmserve {

struct Traced {
  struct Binding {
    uint64_t base;          // the buffer's first address, which stands for it
    uint64_t buffer_bytes;  // all of it
    uint64_t offset;        // where what is bound begins
    uint64_t bytes;         // and how much that is
  };
  std::string kernel;
  std::array<uint32_t, 3> workgroups;
  std::vector<uint32_t> scalars;
  std::vector<Binding> bindings;
  double microseconds = -1;  // unknown: the adapter has no timestamps
};

class WebGPUTrace {
 public:
  explicit WebGPUTrace(const WebGPUDevice& gpu) : gpu_(gpu) {}

  bool on() const { return on_; }

  void Start() {
    records_.clear();
    timed_ = 0;
    on_ = true;
    if (queries_ == nullptr && gpu_.Has(WGPUFeatureName_TimestampQuery)) {
      WGPUQuerySetDescriptor wanted = WGPU_QUERY_SET_DESCRIPTOR_INIT;
      wanted.type = WGPUQueryType_Timestamp;
      wanted.count = 2 * kBatch;
      queries_ = wgpuDeviceCreateQuerySet(gpu_.device, &wanted);
      WGPUBufferDescriptor buffer = WGPU_BUFFER_DESCRIPTOR_INIT;
      buffer.size = kTicksBytes;
      buffer.usage = WGPUBufferUsage_QueryResolve | WGPUBufferUsage_CopySrc;
      ticks_ = wgpuDeviceCreateBuffer(gpu_.device, &buffer);
      gpu_.ThrowIfRefused("Making ready to trace");
    }
  }

  std::vector<Traced> Stop() {
    on_ = false;
    return std::move(records_);
  }

  // Whether the batch must be submitted before another dispatch is traced.
  bool full() const { return timed_ == kBatch; }

  // The pass of one dispatch.
  WGPUComputePassEncoder Pass(WGPUCommandEncoder encoder, Traced record) {
    if (records_.size() == kMost) {
      TVM_FFI_THROW(RuntimeError) << "A trace holds " << kMost << " dispatches at most; trace a shorter run.";
    }
    records_.push_back(std::move(record));
    WGPUPassTimestampWrites writes{};
    writes.querySet = queries_;
    writes.beginningOfPassWriteIndex = 2 * timed_;
    writes.endOfPassWriteIndex = 2 * timed_ + 1;
    WGPUComputePassDescriptor pass = WGPU_COMPUTE_PASS_DESCRIPTOR_INIT;
    if (queries_ != nullptr) {
      pass.timestampWrites = &writes;
      ++timed_;
    }
    return wgpuCommandEncoderBeginComputePass(encoder, &pass);
  }

  // At the end of a batch: has the times written to memory, where `read(buffer, to, bytes)` gets them once it has run.
  void Resolve(WGPUCommandEncoder encoder) const {
    if (timed_ > 0) wgpuCommandEncoderResolveQuerySet(encoder, queries_, 0, 2 * timed_, ticks_, 0);
  }

  template <typename Read>
  void Collect(Read read) {
    if (timed_ == 0) return;
    uint32_t timed = timed_;
    timed_ = 0;
    std::vector<uint64_t> ticks(2 * timed);
    read(ticks_, ticks.data(), ticks.size() * sizeof(uint64_t));
    double period = wgpuQueueGetTimestampPeriod(gpu_.queue) / 1e3;
    for (uint32_t i = 0; i < timed; ++i) {
      records_[records_.size() - timed + i].microseconds =
          static_cast<double>(ticks[2 * i + 1] - ticks[2 * i]) * period;
    }
  }

 private:
  static constexpr uint32_t kBatch = 1024;
  static constexpr uint64_t kTicksBytes = 2 * kBatch * sizeof(uint64_t);
  static constexpr size_t kMost = 1 << 17;

  const WebGPUDevice& gpu_;
  bool on_ = false;
  std::vector<Traced> records_;
  WGPUQuerySet queries_ = nullptr;
  WGPUBuffer ticks_ = nullptr;
  uint32_t timed_ = 0;
};

}  // namespace llmserve
