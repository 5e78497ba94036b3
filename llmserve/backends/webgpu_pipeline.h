// Pipelines from WGSL. A kernel's bindings are its tensors in order and after them one uniform block of its scalars.
#pragma once

#include <cstdlib>
#include <string>
#include <vector>

#include "webgpu_device.h"
#include "webgpu_memory.h"

namespace llmserve {

struct Pipeline {
  std::string name;
  WGPUComputePipeline pipeline = nullptr;
  WGPUBindGroupLayout layout = nullptr;
  uint64_t uniform_bytes = 0;
};

// `writes` says of each tensor whether the kernel writes it, as the shader's own declarations do. Throws what
// wgpu-native says of a shader that it does not take, with the kernel's name.
inline Pipeline MakePipeline(const WebGPUDevice& gpu, const std::string& name, const std::string& code,
                             const std::vector<bool>& writes, size_t scalars) {
  Pipeline made;
  made.name = name;
  made.uniform_bytes = (scalars * 4 + 15) / 16 * 16;
  std::vector<WGPUBindGroupLayoutEntry> entries;
  for (size_t i = 0; i <= writes.size(); ++i) {
    WGPUBindGroupLayoutEntry entry = WGPU_BIND_GROUP_LAYOUT_ENTRY_INIT;
    entry.binding = static_cast<uint32_t>(i);
    entry.visibility = WGPUShaderStage_Compute;
    bool uniform = i == writes.size();
    entry.buffer.type = uniform     ? WGPUBufferBindingType_Uniform
                        : writes[i] ? WGPUBufferBindingType_Storage
                                    : WGPUBufferBindingType_ReadOnlyStorage;
    entry.buffer.hasDynamicOffset = uniform;
    entries.push_back(entry);
  }
  if (writes.size() > gpu.limits.maxStorageBuffersPerShaderStage) {
    TVM_FFI_THROW(RuntimeError) << "Kernel " << name << " has " << writes.size() << " tensors; this GPU takes "
                                << gpu.limits.maxStorageBuffersPerShaderStage << " in a kernel at most.";
  }
  WGPUBindGroupLayoutDescriptor layout = WGPU_BIND_GROUP_LAYOUT_DESCRIPTOR_INIT;
  layout.label = View(name);
  layout.entries = entries.data();
  layout.entryCount = entries.size();
  made.layout = wgpuDeviceCreateBindGroupLayout(gpu.device, &layout);
  gpu.ThrowIfRefused("Kernel " + name + " has bindings that WebGPU does not take");

  WGPUPipelineLayoutDescriptor whole = WGPU_PIPELINE_LAYOUT_DESCRIPTOR_INIT;
  whole.bindGroupLayouts = &made.layout;
  whole.bindGroupLayoutCount = 1;
  WGPUPipelineLayout pipeline_layout = wgpuDeviceCreatePipelineLayout(gpu.device, &whole);

  WGPUShaderSourceWGSL source = WGPU_SHADER_SOURCE_WGSL_INIT;
  source.code = View(code);
  WGPUShaderModuleDescriptor shader = WGPU_SHADER_MODULE_DESCRIPTOR_INIT;
  shader.label = View(name);
  shader.nextInChain = &source.chain;
  // Our own kernels stay within their tensors and their loops end; a check at every access and a counter in every loop
  // would be paid in each of them.
  static const bool checked = std::getenv("LLMSERVE_WEBGPU_CHECKS") != nullptr;
  WGPUShaderModule module = checked
                                ? wgpuDeviceCreateShaderModule(gpu.device, &shader)
                                : wgpuDeviceCreateShaderModuleTrusted(gpu.device, &shader, WGPUShaderRuntimeChecks_None);
  const std::string problem = "Kernel " + name + " does not compile for WebGPU";
  gpu.ThrowIfRefused(problem);

  WGPUComputePipelineDescriptor wanted = WGPU_COMPUTE_PIPELINE_DESCRIPTOR_INIT;
  wanted.label = View(name);
  wanted.layout = pipeline_layout;
  wanted.compute.module = module;
  wanted.compute.entryPoint = View(name);
  made.pipeline = wgpuDeviceCreateComputePipeline(gpu.device, &wanted);
  wgpuShaderModuleRelease(module);
  wgpuPipelineLayoutRelease(pipeline_layout);
  gpu.ThrowIfRefused(problem);
  return made;
}

// The group of `tensors` and of a uniform block whose offset in `uniforms` is given at each dispatch.
inline WGPUBindGroup MakeBindGroup(const WebGPUDevice& gpu, const Pipeline& pipeline, const std::vector<Span>& tensors,
                                   WGPUBuffer uniforms) {
  std::vector<WGPUBindGroupEntry> entries;
  auto add = [&](WGPUBuffer buffer, uint64_t offset, uint64_t size) {
    WGPUBindGroupEntry entry = WGPU_BIND_GROUP_ENTRY_INIT;
    entry.binding = static_cast<uint32_t>(entries.size());
    entry.buffer = buffer;
    entry.offset = offset;
    entry.size = size;
    entries.push_back(entry);
  };
  for (const Span& tensor : tensors) add(tensor.buffer, tensor.offset, tensor.size);
  add(uniforms, 0, pipeline.uniform_bytes);
  WGPUBindGroupDescriptor wanted = WGPU_BIND_GROUP_DESCRIPTOR_INIT;
  wanted.label = View(pipeline.name);
  wanted.layout = pipeline.layout;
  wanted.entries = entries.data();
  wanted.entryCount = entries.size();
  WGPUBindGroup group = wgpuDeviceCreateBindGroup(gpu.device, &wanted);
  gpu.ThrowIfRefused("The arguments of kernel " + pipeline.name);
  return group;
}

}  // namespace llmserve
