// The common part of every plugin for a TVM device: reading the bytes that a compiled library holds for a device module, and
// taking a kernel's arguments and launch shape out of a call. It knows neither WebGPU nor HIP.
//
// TVM writes (little endian, lengths in 64 bits) a map from a kernel's name to its function information, and then what
// the device compiler made of the kernels, which differs by device. A call passes the kernel's arguments in the order of
// `arg_types` and after them one integer per launch tag.
#pragma once

#include <tvm/ffi/container/tensor.h>
#include <tvm/ffi/error.h>
#include <tvm/ffi/function.h>

#include <array>
#include <cstdint>
#include <cstring>
#include <map>
#include <string>
#include <vector>

namespace llmserve {

struct KernelInfo {
  std::string name;
  std::vector<DLDataType> arg_types;
  std::vector<std::string> launch_tags;
};

// Reads TVM's serialized values; every length is checked against what is left, so a damaged library is an error.
class ByteReader {
 public:
  ByteReader(const char* data, size_t size) : at_(data), end_(data + size) {}

  template <typename T>
  T Number() {
    T value;
    std::memcpy(&value, Take(sizeof(T)), sizeof(T));
    return value;
  }

  // A count of things of at least `bytes` bytes each.
  size_t Count(size_t bytes) {
    uint64_t count = Number<uint64_t>();
    if (count > static_cast<uint64_t>(end_ - at_) / bytes) Truncated();
    return static_cast<size_t>(count);
  }

  std::string Text() {
    size_t size = Count(1);
    return std::string(Take(size), size);
  }

  std::map<std::string, KernelInfo> Kernels() {
    std::map<std::string, KernelInfo> kernels;
    for (size_t left = Count(1); left > 0; --left) {
      std::string key = Text();
      KernelInfo& info = kernels[key];
      info.name = Text();
      for (size_t n = Count(4); n > 0; --n) {
        DLDataType type;
        type.code = Number<uint8_t>();
        type.bits = Number<uint8_t>();
        type.lanes = Number<uint16_t>();
        info.arg_types.push_back(type);
      }
      for (size_t n = Count(8); n > 0; --n) info.launch_tags.push_back(Text());
      // Tags of arguments: tensor maps, which only CUDA has.
      for (size_t n = Count(4); n > 0; --n) Number<int32_t>();
    }
    return kernels;
  }

 private:
  const char* Take(size_t size) {
    if (size > static_cast<size_t>(end_ - at_)) Truncated();
    const char* here = at_;
    at_ += size;
    return here;
  }

  [[noreturn]] static void Truncated() {
    TVM_FFI_THROW(ValueError) << "The device module of this library is truncated; compile the model again.";
    TVM_FFI_UNREACHABLE();
  }

  const char* at_;
  const char* end_;
};

// Where a call says how many blocks of how many threads it wants.
class LaunchShape {
 public:
  struct Extent {
    std::array<uint64_t, 3> grid{1, 1, 1};
    std::array<uint64_t, 3> block{1, 1, 1};
    uint64_t dynamic_shared_bytes = 0;

    bool empty() const { return grid[0] * grid[1] * grid[2] * block[0] * block[1] * block[2] == 0; }
  };

  // `device_tag` is asked about tags that are not launch dimensions and says whether it knows them.
  template <typename DeviceTag>
  LaunchShape(const KernelInfo& info, DeviceTag device_tag) : first_(info.arg_types.size()) {
    for (const std::string& tag : info.launch_tags) {
      size_t dot = tag.find('.');
      std::string axis = tag.substr(0, dot);
      int dimension = dot == std::string::npos || dot + 2 != tag.size() ? -1 : tag[dot + 1] - 'x';
      if (axis == "blockIdx" && dimension >= 0 && dimension < 3) {
        slots_.push_back(dimension);
      } else if (axis == "threadIdx" && dimension >= 0 && dimension < 3) {
        slots_.push_back(3 + dimension);
      } else if (tag == "tirx.use_dyn_shared_memory") {
        slots_.push_back(6);
      } else if (!device_tag(tag)) {
        TVM_FFI_THROW(ValueError) << "Kernel " << info.name << " wants to be launched with " << tag
                                  << ", which this device does not know.";
      }
    }
  }

  size_t num_args() const { return first_ + slots_.size(); }

  Extent Extract(const TVMFFIAny* args) const {
    std::array<uint64_t, 7> values{1, 1, 1, 1, 1, 1, 0};
    for (size_t i = 0; i < slots_.size(); ++i) values[slots_[i]] = static_cast<uint64_t>(args[first_ + i].v_int64);
    return {{values[0], values[1], values[2]}, {values[3], values[4], values[5]}, values[6]};
  }

 private:
  size_t first_;
  std::vector<int> slots_;
};

inline bool IsPointer(DLDataType type) { return type.code == kDLOpaqueHandle; }

inline const TVMFFIAny* RawArguments(tvm::ffi::PackedArgs args, const KernelInfo& info, size_t expected) {
  if (static_cast<size_t>(args.size()) != expected) {
    TVM_FFI_THROW(TypeError) << "Kernel " << info.name << " takes " << expected << " arguments and was given "
                             << args.size() << ".";
  }
  return reinterpret_cast<const TVMFFIAny*>(args.data());
}

// The device address in an argument: compiled host code passes addresses, a direct call from Python passes tensors.
inline void* PointerArgument(const TVMFFIAny& value, const KernelInfo& info, size_t index) {
  switch (value.type_index) {
    case kTVMFFINone:
      return nullptr;
    case kTVMFFIOpaquePtr:
      return value.v_ptr;
    case kTVMFFIDLTensorPtr: {
      const auto* tensor = static_cast<const DLTensor*>(value.v_ptr);
      return static_cast<char*>(tensor->data) + tensor->byte_offset;
    }
    case kTVMFFITensor: {
      const DLTensor* tensor = TVMFFITensorGetDLTensorPtr(value.v_obj);
      return static_cast<char*>(tensor->data) + tensor->byte_offset;
    }
    default:
      TVM_FFI_THROW(TypeError) << "Argument " << index << " of kernel " << info.name << " must be a tensor.";
  }
  TVM_FFI_UNREACHABLE();
}

inline double RealArgument(const TVMFFIAny& value) {
  return value.type_index == kTVMFFIFloat ? value.v_float64 : static_cast<double>(value.v_int64);
}

inline int64_t IntegerArgument(const TVMFFIAny& value) {
  return value.type_index == kTVMFFIFloat ? static_cast<int64_t>(value.v_float64) : value.v_int64;
}

// All arguments in one block, each at a multiple of its own size: where a kernel compiled by LLVM looks for them.
inline std::vector<char> PackArguments(const KernelInfo& info, const TVMFFIAny* args) {
  std::vector<char> block;
  auto add = [&](const void* value, size_t size) {
    block.resize((block.size() + size - 1) / size * size + size);
    std::memcpy(block.data() + block.size() - size, value, size);
  };
  for (size_t i = 0; i < info.arg_types.size(); ++i) {
    DLDataType type = info.arg_types[i];
    size_t size = type.bits < 8 ? 1 : type.bits / 8;
    if (IsPointer(type)) {
      void* pointer = PointerArgument(args[i], info, i);
      add(&pointer, sizeof(pointer));
    } else if (type.code == kDLFloat && type.bits == 64) {
      double real = RealArgument(args[i]);
      add(&real, size);
    } else if (type.code == kDLFloat && type.bits == 32) {
      float real = static_cast<float>(RealArgument(args[i]));
      add(&real, size);
    } else if (type.lanes == 1 && size <= 8 && (type.code == kDLInt || type.code == kDLUInt || type.code == kDLBool)) {
      int64_t integer = IntegerArgument(args[i]);  // little endian: the lower bytes come first
      add(&integer, size);
    } else {
      TVM_FFI_THROW(TypeError) << "Argument " << i << " of kernel " << info.name << " is a scalar of code "
                               << int{type.code} << " and " << int{type.bits} << " bits, which is not passed by value.";
    }
  }
  return block;
}

}  // namespace llmserve
