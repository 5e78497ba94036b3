// A libamdhip64 without a GPU: device memory is the host's, kernels of known names are functions here, and what was asked
// for is written to the file that FAKE_HIP_LOG names, a line for each call that tests look at. Two devices. It keeps HIP's
// rules that a plugin could break: what is captured does not run until its graph is launched, nothing is allocated while
// capturing, kernels belong to the device that their module was loaded to.
#pragma GCC visibility push(default)
#include "hip_declarations.h"
#pragma GCC visibility pop

#include <cstdarg>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <set>
#include <string>
#include <vector>

struct ihipStream_t {
  int number;
  bool capturing = false;
  std::vector<std::function<void()>> captured;
};
struct ihipEvent_t {
  int number;
};
struct ihipModule_t {
  int device;
};
struct ihipModuleSymbol_t {
  int device;
  std::string name;
};
struct ihipGraph {
  std::vector<std::function<void()>> work;
};
struct hipGraphExec {
  std::vector<std::function<void()>> work;
};

namespace {

thread_local int current = 0;
int streams = 0, events = 0;
bool capturing = false;
std::set<void*> device_memory;

hipError_t Error(int number) { return static_cast<hipError_t>(number); }

void Log(const char* format, ...) {
  static FILE* file = std::fopen(std::getenv("FAKE_HIP_LOG"), "a");
  va_list arguments;
  va_start(arguments, format);
  std::vfprintf(file, format, arguments);
  va_end(arguments);
  std::fputc('\n', file);
  std::fflush(file);
}

void Do(hipStream_t stream, std::function<void()> work) {
  if (stream != nullptr && stream->capturing) {
    stream->captured.push_back(work);
  } else {
    work();
  }
}

template <typename T>
T At(const std::string& block, size_t offset) {
  T value;
  std::memcpy(&value, block.data() + offset, sizeof(T));
  return value;
}

// The kernels that there are, on the bytes where LLVM's metadata of these kernels says that the arguments are.
void Run(const std::string& name, const std::string& block) {
  if (name == "scale_kernel") {  // a, b, factor, n
    for (int i = 0; i < At<int32_t>(block, 20); ++i) {
      At<float*>(block, 8)[i] = At<float*>(block, 0)[i] * At<float>(block, 16);
    }
  } else if (name == "add_kernel") {  // a, b, c, n
    for (int i = 0; i < At<int32_t>(block, 24); ++i) {
      At<float*>(block, 16)[i] = At<float*>(block, 0)[i] + At<float*>(block, 8)[i];
    }
  }
}

}  // namespace

extern "C" {

hipError_t hipGetDeviceCount(int* count) { return *count = 2, hipSuccess; }
hipError_t hipGetDevice(int* device) { return *device = current, hipSuccess; }
hipError_t hipSetDevice(int device) {
  if (device > 1) return Error(101);
  current = device;
  return hipSuccess;
}
hipError_t hipDeviceGetName(char* name, int size, hipDevice_t device) {
  std::snprintf(name, size, "Fake Radeon %d", device);
  return hipSuccess;
}
hipError_t hipDeviceGetAttribute(int* value, hipDeviceAttribute_t attribute, int) {
  *value = 1000 + attribute;  // so that tests see which was asked for
  return hipSuccess;
}
hipError_t hipDriverGetVersion(int* version) { return *version = 60342134, hipSuccess; }
hipError_t hipRuntimeGetVersion(int* version) { return *version = 60342133, hipSuccess; }
const char* hipGetErrorString(hipError_t error) { return error == Error(1) ? "invalid argument" : "some error"; }
hipError_t hipGetLastError() { return hipSuccess; }
__attribute__((visibility("default"))) hipError_t hipGetDevicePropertiesR0600(void* properties, int) {
  std::strcpy(static_cast<char*>(properties), "Fake Radeon");
  std::strcpy(static_cast<char*>(properties) + 1160, "gfx90a:sramecc+:xnack-");
  return hipSuccess;
}

hipError_t hipMalloc(void** pointer, size_t size) {
  if (capturing) return Error(900);
  if (size > size_t{1} << 30) return Error(2);
  *pointer = std::aligned_alloc(256, (size + 255) / 256 * 256 + 256);
  device_memory.insert(*pointer);
  Log("malloc %d %zu", current, size);
  return hipSuccess;
}
hipError_t hipFree(void* pointer) {
  if (device_memory.erase(pointer) == 0) return Error(1);
  std::free(pointer);
  Log("free %d", current);
  return hipSuccess;
}
hipError_t hipHostMalloc(void** pointer, size_t size, unsigned int) {
  Log("host malloc %zu", size);
  return *pointer = std::aligned_alloc(256, (size + 255) / 256 * 256), hipSuccess;
}
hipError_t hipHostFree(void* pointer) { return std::free(pointer), hipSuccess; }
hipError_t hipMemGetInfo(size_t* free, size_t* total) { return *free = 7, *total = 8, hipSuccess; }
hipError_t hipMemcpyAsync(void* to, const void* from, size_t size, hipMemcpyKind kind, hipStream_t stream) {
  Log("copy %d %zu %d", static_cast<int>(kind), size, stream == nullptr ? 0 : stream->number);
  Do(stream, [=] { std::memcpy(to, from, size); });
  return hipSuccess;
}
hipError_t hipMemcpyPeerAsync(void* to, int to_device, const void* from, int from_device, size_t size, hipStream_t) {
  Log("peer %d %d %zu", from_device, to_device, size);
  std::memcpy(to, from, size);
  return hipSuccess;
}

hipError_t hipStreamCreate(hipStream_t* stream) { return *stream = new ihipStream_t{++streams}, hipSuccess; }
hipError_t hipStreamDestroy(hipStream_t stream) { return delete stream, hipSuccess; }
hipError_t hipStreamSynchronize(hipStream_t stream) {
  if (capturing) return Error(900);
  Log("sync %d", stream == nullptr ? 0 : stream->number);
  return hipSuccess;
}
hipError_t hipStreamWaitEvent(hipStream_t stream, hipEvent_t event, unsigned int) {
  Log("wait %d %d", stream == nullptr ? 0 : stream->number, event->number);
  return hipSuccess;
}
hipError_t hipEventCreate(hipEvent_t* event) { return *event = new ihipEvent_t{++events}, hipSuccess; }
hipError_t hipEventDestroy(hipEvent_t event) { return delete event, hipSuccess; }
hipError_t hipEventRecord(hipEvent_t event, hipStream_t stream) {
  Log("record %d %d", event->number, stream == nullptr ? 0 : stream->number);
  return hipSuccess;
}
hipError_t hipEventSynchronize(hipEvent_t) { return hipSuccess; }
hipError_t hipEventElapsedTime(float* milliseconds, hipEvent_t start, hipEvent_t stop) {
  *milliseconds = 1.5f * static_cast<float>(stop->number - start->number);
  return hipSuccess;
}

hipError_t hipModuleLoadData(hipModule_t* module, const void* image) {
  if (std::memcmp(image, "\x7f" "ELF", 4) != 0) return Error(200);
  Log("load %d", current);
  return *module = new ihipModule_t{current}, hipSuccess;
}
hipError_t hipModuleUnload(hipModule_t module) { return delete module, hipSuccess; }
hipError_t hipModuleGetFunction(hipFunction_t* function, hipModule_t module, const char* name) {
  if (std::strcmp(name, "absent_kernel") == 0) return Error(500);
  return *function = new ihipModuleSymbol_t{module->device, name}, hipSuccess;
}
hipError_t hipModuleLaunchKernel(hipFunction_t function, unsigned int grid_x, unsigned int grid_y, unsigned int grid_z,
                                 unsigned int block_x, unsigned int block_y, unsigned int block_z,
                                 unsigned int shared_bytes, hipStream_t stream, void** arguments, void** extra) {
  using namespace llmserve::hip;
  if (function->device != current || arguments != nullptr || block_x * block_y * block_z > 1024) return Error(1);
  if (extra[0] != kLaunchBufferPointer || extra[2] != kLaunchBufferSize || extra[4] != kLaunchEnd) return Error(1);
  std::string block(static_cast<char*>(extra[1]), *static_cast<size_t*>(extra[3]));
  std::string hex;
  for (unsigned char c : block) {
    char digits[3];
    std::snprintf(digits, sizeof(digits), "%02x", c);
    hex += digits;
  }
  Log("launch %d %s %u %u %u %u %u %u %u %d %s", current, function->name.c_str(), grid_x, grid_y, grid_z, block_x,
      block_y, block_z, shared_bytes, stream == nullptr ? 0 : stream->number, hex.c_str());
  Do(stream, [name = function->name, block] { Run(name, block); });
  return hipSuccess;
}

hipError_t hipStreamBeginCapture(hipStream_t stream, hipStreamCaptureMode) {
  if (stream == nullptr) return Error(901);
  Log("capture");
  return stream->capturing = capturing = true, hipSuccess;
}
hipError_t hipStreamEndCapture(hipStream_t stream, hipGraph_t* graph) {
  stream->capturing = capturing = false;
  return *graph = new ihipGraph{stream->captured}, hipSuccess;
}
hipError_t hipGraphInstantiate(hipGraphExec_t* executable, hipGraph_t graph, hipGraphNode_t*, char*, size_t) {
  return *executable = new hipGraphExec{graph->work}, hipSuccess;
}
hipError_t hipGraphDestroy(hipGraph_t graph) { return delete graph, hipSuccess; }
hipError_t hipGraphLaunch(hipGraphExec_t executable, hipStream_t stream) {
  Log("graph %zu", executable->work.size());
  for (const auto& work : executable->work) Do(stream, work);
  return hipSuccess;
}
hipError_t hipGraphExecDestroy(hipGraphExec_t executable) { return delete executable, hipSuccess; }
}
