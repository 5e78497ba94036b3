// The queue of commands: dispatches and copies gather in one command buffer, which is submitted when the host wants to see a result,
// waits, or when it is full. So a model's step is one submission.
//
// What the host says while a batch grows (scalars of kernels, small writes to memory) gathers in two arenas beside it,
// which are written just before the batch is submitted; the batch itself copies from them, in its place among the
// dispatches. Large writes submit what is pending and go straight to the queue.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <string>
#include <vector>

#include "webgpu_memory.h"
#include "webgpu_pipeline.h"
#include "webgpu_trace.h"

namespace llmserve {

class WebGPUQueue {
 public:
  explicit WebGPUQueue(const WebGPUDevice& gpu)
      : trace(gpu),
        gpu_(gpu),
        uniforms_(gpu, 1 << 20, WGPUBufferUsage_Uniform, gpu.limits.minUniformBufferOffsetAlignment),
        uploads_(gpu, 4 << 20, WGPUBufferUsage_CopySrc, 4) {}

  WGPUBuffer uniforms() const { return uniforms_.buffer; }

  // `scalars` is the kernel's uniform block; `bindings` are for a trace.
  void Dispatch(const Pipeline& kernel, WGPUBindGroup group, const std::vector<uint32_t>& scalars,
                std::array<uint32_t, 3> workgroups, std::vector<Traced::Binding> bindings = {}) {
    Fit(uniforms_, kernel.uniform_bytes);
    if (trace.on()) {
      if (trace.full()) Flush();
      EndPass();
      pass_ = trace.Pass(Encoder(), {kernel.name, workgroups, scalars, std::move(bindings)});
    }
    uint32_t offset = static_cast<uint32_t>(uniforms_.Add(scalars.data(), scalars.size() * 4, kernel.uniform_bytes));
    if (pass_ == nullptr) pass_ = wgpuCommandEncoderBeginComputePass(Encoder(), nullptr);
    wgpuComputePassEncoderSetPipeline(pass_, kernel.pipeline);
    wgpuComputePassEncoderSetBindGroup(pass_, 0, group, 1, &offset);
    wgpuComputePassEncoderDispatchWorkgroups(pass_, workgroups[0], workgroups[1], workgroups[2]);
    working_ = true;
    ++dispatches;
    if (std::find(names_.begin(), names_.end(), kernel.name) == names_.end() && names_.size() < kNames) {
      names_.push_back(kernel.name);
    }
  }

  // `from` may be reused when this returns.
  void CopyIn(Span to, const void* from) {
    const char* bytes = static_cast<const char*>(from);
    if (!Whole(to)) {
      while (to.size > 0) {
        uint64_t part = std::min(to.size, kSmall);
        Upload({Scratch(), 0, part}, bytes);
        Merge(to, part, 0);
        bytes += part, to.offset += part, to.size -= part;
      }
      return;
    }
    if (to.size > kSmall) {
      Flush();
      uint64_t words = to.size / 4 * 4;
      for (uint64_t done = 0; done < words; done += kLarge) {
        wgpuQueueWriteBuffer(gpu_.queue, to.buffer, to.offset + done, bytes + done, std::min(kLarge, words - done));
        // wgpu-native keeps a copy of all that is written until it is submitted and has run.
        wgpuQueueSubmit(gpu_.queue, 0, nullptr);
        if (words > kLarge) wgpuDevicePoll(gpu_.device, true, nullptr);
      }
      gpu_.ThrowIfRefused("Copying to the GPU");
      bytes += words, to.offset += words, to.size -= words;
    }
    if (to.size > 0) Upload(to, bytes);
  }

  void CopyOut(void* to, Span from) {
    char* bytes = static_cast<char*>(to);
    while (from.size > 0) {
      uint64_t skip = from.offset % 4;
      uint64_t part = std::min(from.size, kWindow - 4);
      uint64_t whole = (skip + part + 3) / 4 * 4;
      Readback(whole);
      Copy({readback_, 0, whole}, from.buffer, from.offset - skip, whole);
      Flush();
      map_status_ = 0;
      WGPUBufferMapCallbackInfo mapped = WGPU_BUFFER_MAP_CALLBACK_INFO_INIT;
      mapped.mode = WGPUCallbackMode_AllowSpontaneous;
      mapped.userdata1 = this;
      mapped.callback = [](WGPUMapAsyncStatus status, WGPUStringView message, void* self, void*) {
        static_cast<WebGPUQueue*>(self)->map_status_ = status;
        static_cast<WebGPUQueue*>(self)->map_message_ = Text(message);
      };
      wgpuBufferMapAsync(readback_, WGPUMapMode_Read, 0, whole, mapped);
      Settle();
      if (map_status_ != WGPUMapAsyncStatus_Success) {
        TVM_FFI_THROW(RuntimeError) << "Reading from the GPU failed: " << map_message_;
      }
      std::memcpy(bytes, static_cast<const char*>(wgpuBufferGetConstMappedRange(readback_, 0, whole)) + skip, part);
      wgpuBufferUnmap(readback_);
      bytes += part, from.offset += part, from.size -= part;
    }
  }

  // Of one buffer, the two ranges must not overlap.
  void CopyWithin(Span to, Span from) {
    if (to.buffer != from.buffer && Whole(to) && from.offset % 4 == 0) {
      return Copy(to, from.buffer, from.offset, (to.size + 3) / 4 * 4);
    }
    while (to.size > 0) {
      uint64_t skip = from.offset % 4;
      uint64_t part = std::min(to.size, kScratch - 4);
      uint64_t whole = (skip + part + 3) / 4 * 4;
      Copy({Scratch(), 0, whole}, from.buffer, from.offset - skip, whole);
      if (skip == 0 && to.offset % 4 == 0 && part % 4 == 0) {
        Copy({to.buffer, to.offset, part}, Scratch(), 0, part);
      } else {
        Merge(to, part, skip);
      }
      to.offset += part, to.size -= part, from.offset += part;
    }
  }

  // Submits what is pending; does not wait.
  void Flush() {
    if (encoder_ == nullptr) return;
    EndPass();
    trace.Resolve(encoder_);
    WGPUCommandBuffer commands = wgpuCommandEncoderFinish(encoder_, nullptr);
    wgpuCommandEncoderRelease(encoder_);
    encoder_ = nullptr;
    uint64_t uniform_bytes = uniforms_.used, upload_bytes = uploads_.used;
    uniforms_.used = uploads_.used = 0;
    std::string names;
    for (const std::string& name : names_) names += (names.empty() ? " with " : ", ") + name;
    names_.clear();
    try {
      gpu_.ThrowIfRefused("A batch of commands" + names);
      uniforms_.Write(uniform_bytes);
      uploads_.Write(upload_bytes);
      gpu_.ThrowIfRefused("Writing to the GPU");
    } catch (...) {
      wgpuCommandBufferRelease(commands);
      throw;
    }
    wgpuQueueSubmit(gpu_.queue, 1, &commands);
    wgpuCommandBufferRelease(commands);
    ++submissions;
    gpu_.ThrowIfRefused("A batch of commands" + names);
    trace.Collect([this](WGPUBuffer from, void* to, uint64_t bytes) { CopyOut(to, {from, 0, bytes}); });
  }

  // Waits for kernels and copies within the device. Writes alone are not waited for: nobody could tell.
  void Wait() {
    if (!working_) return;
    Flush();
    Settle();
  }

  WebGPUTrace trace;
  uint64_t dispatches = 0;
  uint64_t submissions = 0;

 private:
  static constexpr uint64_t kSmall = 256 << 10;  // what goes through the arena
  static constexpr uint64_t kLarge = 32 << 20;   // written at once
  static constexpr uint64_t kWindow = 64 << 20;  // read at once
  static constexpr uint64_t kScratch = 4 << 20;
  static constexpr size_t kNames = 8;

  // Memory of the device that the host fills in order while a batch grows.
  struct Arena {
    Arena(const WebGPUDevice& gpu, uint64_t capacity, WGPUBufferUsage usage, uint64_t alignment)
        : gpu(gpu), capacity(capacity), alignment(alignment), host(capacity) {
      buffer = MakeBuffer(gpu, capacity, usage | WGPUBufferUsage_CopyDst);
    }

    uint64_t Add(const void* data, uint64_t size, uint64_t room) {
      uint64_t offset = used;
      std::memcpy(host.data() + offset, data, size);
      used = (offset + room + alignment - 1) / alignment * alignment;
      return offset;
    }

    void Write(uint64_t bytes) {
      if (bytes > 0) wgpuQueueWriteBuffer(gpu.queue, buffer, 0, host.data(), std::min(bytes, capacity));
    }

    const WebGPUDevice& gpu;
    uint64_t capacity;
    uint64_t alignment;
    uint64_t used = 0;
    std::vector<char> host;
    WGPUBuffer buffer;
  };

  static WGPUBuffer MakeBuffer(const WebGPUDevice& gpu, uint64_t size, WGPUBufferUsage usage) {
    WGPUBufferDescriptor wanted = WGPU_BUFFER_DESCRIPTOR_INIT;
    wanted.size = size;
    wanted.usage = usage;
    WGPUBuffer buffer = wgpuDeviceCreateBuffer(gpu.device, &wanted);
    gpu.ThrowIfRefused("Allocating " + std::to_string(size) + " bytes for copies");
    return buffer;
  }

  // Whether a write of whole words to this place harms nobody.
  static bool Whole(const Span& to) {
    return to.offset % 4 == 0 && (to.size % 4 == 0 || to.slack >= 4 - to.size % 4);
  }

  WGPUCommandEncoder Encoder() {
    if (encoder_ == nullptr) encoder_ = wgpuDeviceCreateCommandEncoder(gpu_.device, nullptr);
    return encoder_;
  }

  void EndPass() {
    if (pass_ == nullptr) return;
    wgpuComputePassEncoderEnd(pass_);
    wgpuComputePassEncoderRelease(pass_);
    pass_ = nullptr;
  }

  void Fit(Arena& arena, uint64_t bytes) {
    if (arena.used + bytes > arena.capacity) Flush();
  }

  void Copy(Span to, WGPUBuffer from, uint64_t offset, uint64_t size) {
    EndPass();
    wgpuCommandEncoderCopyBufferToBuffer(Encoder(), from, offset, to.buffer, to.offset, size);
    working_ = true;
  }

  // Through the arena, a part at a time; `to` is whole words.
  void Upload(Span to, const char* bytes) {
    uint64_t whole = (to.size + 3) / 4 * 4;
    Fit(uploads_, whole);
    uint64_t offset = uploads_.Add(bytes, to.size, whole);
    EndPass();
    wgpuCommandEncoderCopyBufferToBuffer(Encoder(), uploads_.buffer, offset, to.buffer, to.offset, whole);
  }

  WGPUBuffer Scratch() {
    if (scratch_ == nullptr) {
      scratch_ = MakeBuffer(gpu_, kScratch,
                            WGPUBufferUsage_Storage | WGPUBufferUsage_CopySrc | WGPUBufferUsage_CopyDst);
    }
    return scratch_;
  }

  void Readback(uint64_t size) {
    if (size <= readback_size_) return;
    if (readback_ != nullptr) wgpuBufferRelease(readback_);
    readback_ = nullptr;
    readback_size_ = 0;
    uint64_t room = 1 << 16;
    while (room < size) room *= 2;
    readback_ = MakeBuffer(gpu_, room, WGPUBufferUsage_MapRead | WGPUBufferUsage_CopyDst);
    readback_size_ = room;
  }

  void Settle() {
    wgpuDevicePoll(gpu_.device, true, nullptr);
    working_ = false;
    gpu_.ThrowIfRefused("Waiting for the GPU");
  }

  // Bytes [skip, skip + count) of the scratch memory to `to`, whose words may hold others' bytes too.
  void Merge(Span to, uint64_t count, uint64_t skip) {
    static const char* code = R"(
struct Arguments { begin : u32, end : u32, skip : u32, unused : u32 }
@group(0) @binding(0) var<storage, read> source : array<u32>;
@group(0) @binding(1) var<storage, read_write> target_words : array<u32>;
@group(0) @binding(2) var<uniform> arguments : Arguments;

@compute @workgroup_size(64)
fn merge_bytes(@builtin(global_invocation_id) id : vec3<u32>) {
  let word = arguments.begin / 4u + id.x;
  if (word * 4u >= arguments.end) { return; }
  var value = target_words[word];
  for (var byte = 0u; byte < 4u; byte++) {
    let place = word * 4u + byte;
    if (place >= arguments.begin && place < arguments.end) {
      let origin = place - arguments.begin + arguments.skip;
      let bits = (source[origin / 4u] >> (origin % 4u * 8u)) & 255u;
      value = (value & ~(255u << (byte * 8u))) | (bits << (byte * 8u));
    }
  }
  target_words[word] = value;
})";
    if (merge_.pipeline == nullptr) merge_ = MakePipeline(gpu_, "merge_bytes", code, {false, true}, 4);
    uint64_t step = std::max<uint64_t>(gpu_.limits.minStorageBufferOffsetAlignment, 4);
    uint64_t base = to.offset / step * step;
    uint32_t begin = static_cast<uint32_t>(to.offset - base), end = static_cast<uint32_t>(begin + count);
    Span window{to.buffer, base, (uint64_t{end} + 3) / 4 * 4};
    WGPUBindGroup group = MakeBindGroup(gpu_, merge_, {{Scratch(), 0, kScratch}, window}, uniforms_.buffer);
    uint32_t words = (end + 3) / 4 - begin / 4;
    Dispatch(merge_, group, {begin, end, static_cast<uint32_t>(skip), 0}, {(words + 63) / 64, 1, 1});
    wgpuBindGroupRelease(group);
  }

  const WebGPUDevice& gpu_;
  Arena uniforms_;
  Arena uploads_;
  WGPUCommandEncoder encoder_ = nullptr;
  WGPUComputePassEncoder pass_ = nullptr;
  bool working_ = false;
  std::vector<std::string> names_;
  WGPUBuffer scratch_ = nullptr;
  WGPUBuffer readback_ = nullptr;
  uint64_t readback_size_ = 0;
  int map_status_ = 0;
  std::string map_message_;
  Pipeline merge_;
};

}  // namespace llmserve
