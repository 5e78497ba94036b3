// The loader of kernels compiled for AMD: a code object is loaded to each device that calls one of its kernels.
#pragma once

#include <tvm/ffi/extra/module.h>

#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include "hip_api.h"
#include "module.h"

namespace llmserve::hip {

using tvm::ffi::Any;
using tvm::ffi::Bytes;
using tvm::ffi::Function;
using tvm::ffi::Module;
using tvm::ffi::ModuleObj;
using tvm::ffi::Optional;
using tvm::ffi::PackedArgs;
using tvm::ffi::String;

class CodeObject {
 public:
  explicit CodeObject(std::string image) : image_(std::move(image)) {}

  // The function on the current device, which `device` becomes.
  hipFunction_t Find(const std::string& name, int* device) {
    const Api& api = Api::Get();
    api.Check(api.hipGetDevice(device), "Asking for the current device");
    std::lock_guard<std::mutex> lock(mutex_);
    hipFunction_t& function = functions_[{*device, name}];
    if (function == nullptr) {
      hipModule_t& module = modules_[*device];
      if (module == nullptr) {
        api.Check(api.hipModuleLoadData(&module, image_.data()),
                  "Loading kernels to " + api.Name(*device) + " (" + api.Architecture(*device) + ")");
      }
      api.Check(api.hipModuleGetFunction(&function, module, name.c_str()), "Looking for kernel " + name);
    }
    return function;
  }

  ~CodeObject() {  // errors are of no use here: at the end of the process HIP may have gone already
    for (auto [device, module] : modules_) {
      if (Api::Get().hipSetDevice(device) == hipSuccess) Api::Get().hipModuleUnload(module);
    }
  }

 private:
  std::string image_;
  std::mutex mutex_;
  std::map<int, hipModule_t> modules_;
  std::map<std::pair<int, std::string>, hipFunction_t> functions_;
};

class Kernel {
 public:
  Kernel(KernelInfo info, std::shared_ptr<CodeObject> code)
      : info_(std::move(info)), shape_(info_, [](const std::string&) { return false; }), code_(std::move(code)) {}

  void Call(PackedArgs packed) const {
    const TVMFFIAny* args = RawArguments(packed, info_, shape_.num_args());
    LaunchShape::Extent extent = shape_.Extract(args);
    if (extent.empty()) return;
    for (uint64_t size : {extent.grid[0], extent.grid[1], extent.grid[2], extent.block[0] * extent.block[1] *
                          extent.block[2], extent.dynamic_shared_bytes}) {
      if (size > UINT32_MAX) {
        TVM_FFI_THROW(ValueError) << "Kernel " << info_.name << " is launched with " << size << " of something.";
      }
    }
    int device;
    hipFunction_t function = code_->Find(info_.name, &device);
    std::vector<char> block = PackArguments(info_, args);
    size_t size = block.size();
    void* extra[] = {kLaunchBufferPointer, block.data(), kLaunchBufferSize, &size, kLaunchEnd};
    auto word = [](uint64_t value) { return static_cast<unsigned int>(value); };
    const Api& api = Api::Get();
    hipError_t status = api.hipModuleLaunchKernel(
        function, word(extent.grid[0]), word(extent.grid[1]), word(extent.grid[2]), word(extent.block[0]),
        word(extent.block[1]), word(extent.block[2]), word(extent.dynamic_shared_bytes), CurrentStream(device), nullptr,
        extra);
    if (status == hipSuccess) return;
    std::string shape;
    for (uint64_t n : extent.grid) shape += std::to_string(n) + " ";
    shape += "blocks of ";
    for (uint64_t n : extent.block) shape += std::to_string(n) + " ";
    api.Check(status, "Launching kernel " + info_.name + " with " + shape + "threads");
  }

 private:
  KernelInfo info_;
  LaunchShape shape_;
  std::shared_ptr<CodeObject> code_;
};

class HipModule final : public ModuleObj {
 public:
  explicit HipModule(const Bytes& bytes) : bytes_(bytes) {
    ByteReader reader(bytes.data(), bytes.size());
    std::string format = reader.Text();
    std::map<std::string, KernelInfo> infos = reader.Kernels();
    if (format != "hsaco" && format != "hip") {
      TVM_FFI_THROW(ValueError) << "The library holds AMD kernels as " << format << ", where hsaco was expected.";
    }
    auto code = std::make_shared<CodeObject>(reader.Text());
    for (auto& [name, info] : infos) {
      info.name = name;
      kernels_[name] = std::make_shared<Kernel>(info, code);
    }
  }

  const char* kind() const final { return "hip"; }
  int GetPropertyMask() const final { return Module::kBinarySerializable | Module::kRunnable; }
  Bytes SaveToBytes() const final { return bytes_; }

  Optional<Function> GetFunction(const String& name) final {
    auto kernel = kernels_.find(name);
    if (kernel == kernels_.end()) return std::nullopt;
    return Function::FromPacked([kernel = kernel->second](PackedArgs args, Any*) { kernel->Call(args); });
  }

 private:
  Bytes bytes_;
  std::map<std::string, std::shared_ptr<Kernel>> kernels_;
};

}  // namespace llmserve::hip
