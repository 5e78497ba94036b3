// Device memory under addresses: WebGPU has buffers and no pointers, TVM wants pointers that it may add to.
//
// Each buffer gets a range of made-up addresses, which no later one gets again, so that a pointer into it is a buffer
// and an offset, and one into memory that was freed is an error.
#pragma once

#include <tvm/ffi/error.h>

#include <algorithm>
#include <cstdint>
#include <map>
#include <string>

#include "webgpu_device.h"

namespace llmserve {

// A place in a buffer: `size` bytes from `offset` on are the caller's, and of the `slack` bytes behind nobody's.
struct Span {
  WGPUBuffer buffer;
  uint64_t offset;
  uint64_t size;
  uint64_t slack = 0;
  uint64_t base = 0;          // the buffer's first address
  uint64_t buffer_bytes = 0;  // and size
};

class WebGPUMemory {
 public:
  explicit WebGPUMemory(const WebGPUDevice& gpu) : gpu_(gpu) {}

  void* Allocate(uint64_t bytes) {
    if (bytes > gpu_.limits.maxBufferSize - kPadding) {
      TVM_FFI_THROW(MemoryError) << "A tensor of " << bytes << " bytes does not fit one buffer of this GPU ("
                                 << gpu_.limits.maxBufferSize << " bytes at most).";
    }
    // A binding must hold one element of the kernel's array, a vector of four words at most.
    uint64_t padded = bytes < kPadding ? kPadding : (bytes + kPadding - 1) / kPadding * kPadding;
    WGPUBufferDescriptor wanted = WGPU_BUFFER_DESCRIPTOR_INIT;
    wanted.size = padded;
    wanted.usage = WGPUBufferUsage_Storage | WGPUBufferUsage_CopySrc | WGPUBufferUsage_CopyDst;
    WGPUBuffer buffer = wgpuDeviceCreateBuffer(gpu_.device, &wanted);
    try {
      gpu_.ThrowIfRefused("Allocating " + std::to_string(bytes) + " bytes");
    } catch (...) {
      wgpuBufferRelease(buffer);
      throw;
    }
    uint64_t address = next_;
    next_ += (padded / kStep + 2) * kStep;  // at least a step between two, so that an overrun meets nothing
    ranges_.emplace(address, Range{buffer, bytes, padded});
    bytes_ += padded;
    peak_ = bytes_ > peak_ ? bytes_ : peak_;
    return reinterpret_cast<void*>(address);
  }

  // The buffer itself lives until the last command that uses it has run.
  void Free(void* pointer) {
    auto range = ranges_.find(reinterpret_cast<uint64_t>(pointer));
    if (range == ranges_.end()) {
      TVM_FFI_THROW(ValueError) << "There is no WebGPU memory at " << pointer << " to free.";
    }
    bytes_ -= range->second.padded;
    wgpuBufferRelease(range->second.buffer);
    ranges_.erase(range);
  }

  // `size` bytes at `pointer`, which must all be of one allocation (its padding to whole words not counted).
  Span Bytes(const void* pointer, uint64_t size) const {
    uint64_t offset;
    const Range& range = Find(pointer, &offset);
    if (size > range.bytes - offset) {
      TVM_FFI_THROW(ValueError) << size << " bytes at " << offset << " reach beyond WebGPU memory of " << range.bytes
                                << " bytes.";
    }
    return {range.buffer, offset, size, offset + size == range.bytes ? range.padded - range.bytes : 0};
  }

  // What a kernel gets that is passed `pointer`: the rest of its allocation, as much as one binding may hold.
  Span Binding(const void* pointer, const std::string& kernel, size_t argument) const {
    uint64_t offset;
    const Range& range = Find(pointer, &offset);
    if (uint64_t step = gpu_.limits.minStorageBufferOffsetAlignment; offset % step != 0) {
      TVM_FFI_THROW(ValueError) << "Argument " << argument << " of kernel " << kernel << " is a view that begins at byte "
                                << offset << "; on this GPU views must begin at multiples of " << step << ".";
    }
    uint64_t most = gpu_.limits.maxStorageBufferBindingSize / kPadding * kPadding;
    if (offset == 0 && range.bytes > most) {
      TVM_FFI_THROW(ValueError) << "Argument " << argument << " of kernel " << kernel << " has " << range.bytes
                                << " bytes; a kernel on this GPU sees " << most << " of a tensor at most.";
    }
    uint64_t rest = range.padded - offset;
    return {range.buffer, offset, std::min(rest, most), 0, reinterpret_cast<uint64_t>(pointer) - offset, range.padded};
  }

  uint64_t bytes() const { return bytes_; }
  uint64_t peak() const { return peak_; }
  size_t count() const { return ranges_.size(); }

 private:
  static constexpr uint64_t kPadding = 16;
  static constexpr uint64_t kStep = 1 << 16;

  struct Range {
    WGPUBuffer buffer;
    uint64_t bytes;   // asked for
    uint64_t padded;  // the buffer's
  };

  const Range& Find(const void* pointer, uint64_t* offset) const {
    uint64_t address = reinterpret_cast<uint64_t>(pointer);
    auto range = ranges_.upper_bound(address);
    if (range != ranges_.begin() && address - (--range)->first <= range->second.bytes) {
      *offset = address - range->first;
      return range->second;
    }
    TVM_FFI_THROW(ValueError) << "There is no WebGPU memory at " << pointer << "; it was freed, or is another device's.";
  }

  const WebGPUDevice& gpu_;
  std::map<uint64_t, Range> ranges_;
  uint64_t next_ = uint64_t{1} << 40;
  uint64_t bytes_ = 0;
  uint64_t peak_ = 0;
};

}  // namespace llmserve
