// The part of HIP's C interface that the plugin uses, declared here so that it compiles on a machine without ROCm. Names,
// types and numbers are HIP's; the tests compile this file behind HIP's own header, where they have to agree.
#pragma once

#include <cstddef>

#ifndef LLMSERVE_HIP_OWN_HEADER_CAME_FIRST
typedef enum hipError_t : int { hipSuccess = 0 } hipError_t;
typedef enum hipMemcpyKind : int { hipMemcpyHostToHost = 0 } hipMemcpyKind;
typedef enum hipDeviceAttribute_t : int { hipDeviceAttributeEccEnabled = 0 } hipDeviceAttribute_t;
typedef enum hipStreamCaptureMode : int { hipStreamCaptureModeGlobal = 0 } hipStreamCaptureMode;
typedef int hipDevice_t;
typedef struct ihipStream_t* hipStream_t;
typedef struct ihipEvent_t* hipEvent_t;
typedef struct ihipModule_t* hipModule_t;
typedef struct ihipModuleSymbol_t* hipFunction_t;
typedef struct ihipGraph* hipGraph_t;
typedef struct hipGraphNode* hipGraphNode_t;
typedef struct hipGraphExec* hipGraphExec_t;
#endif

namespace llmserve::hip {

// Enumerators by their numbers, which are HIP's binary interface.
constexpr int kOutOfMemory = 2;
constexpr int kDeinitialized = 4;
constexpr int kHostToDevice = 1;
constexpr int kDeviceToHost = 2;
constexpr int kDeviceToDevice = 3;
constexpr int kCaptureGlobal = 0;
constexpr int kClockRate = 5;
constexpr int kL2CacheSize = 19;
constexpr int kComputeCapabilityMajor = 23;
constexpr int kMaxBlockDimX = 26;
constexpr int kMaxBlockDimY = 27;
constexpr int kMaxBlockDimZ = 28;
constexpr int kMaxThreadsPerBlock = 56;
constexpr int kComputeCapabilityMinor = 61;
constexpr int kMultiprocessorCount = 63;
constexpr int kMaxRegistersPerBlock = 71;
constexpr int kMaxSharedMemoryPerBlock = 74;
constexpr int kWarpSize = 87;

// What `extra` of a launch may hold: the address of the packed arguments, that of their size, the end.
inline void* const kLaunchBufferPointer = reinterpret_cast<void*>(1);
inline void* const kLaunchBufferSize = reinterpret_cast<void*>(2);
inline void* const kLaunchEnd = reinterpret_cast<void*>(3);

}  // namespace llmserve::hip

extern "C" {
hipError_t hipGetDeviceCount(int* count);
hipError_t hipGetDevice(int* device);
hipError_t hipSetDevice(int device);
hipError_t hipDeviceGetName(char* name, int size, hipDevice_t device);
hipError_t hipDeviceGetAttribute(int* value, hipDeviceAttribute_t attribute, int device);
hipError_t hipDriverGetVersion(int* version);
hipError_t hipRuntimeGetVersion(int* version);
const char* hipGetErrorString(hipError_t error);
hipError_t hipGetLastError(void);

hipError_t hipMalloc(void** pointer, size_t size);
hipError_t hipFree(void* pointer);
hipError_t hipHostMalloc(void** pointer, size_t size, unsigned int flags);
hipError_t hipHostFree(void* pointer);
hipError_t hipMemGetInfo(size_t* free, size_t* total);
hipError_t hipMemcpyAsync(void* to, const void* from, size_t size, hipMemcpyKind kind, hipStream_t stream);
hipError_t hipMemcpyPeerAsync(void* to, int to_device, const void* from, int from_device, size_t size,
                              hipStream_t stream);

hipError_t hipStreamCreate(hipStream_t* stream);
hipError_t hipStreamDestroy(hipStream_t stream);
hipError_t hipStreamSynchronize(hipStream_t stream);
hipError_t hipStreamWaitEvent(hipStream_t stream, hipEvent_t event, unsigned int flags);
hipError_t hipEventCreate(hipEvent_t* event);
hipError_t hipEventDestroy(hipEvent_t event);
hipError_t hipEventRecord(hipEvent_t event, hipStream_t stream);
hipError_t hipEventSynchronize(hipEvent_t event);
hipError_t hipEventElapsedTime(float* milliseconds, hipEvent_t start, hipEvent_t stop);

hipError_t hipModuleLoadData(hipModule_t* module, const void* image);
hipError_t hipModuleUnload(hipModule_t module);
hipError_t hipModuleGetFunction(hipFunction_t* function, hipModule_t module, const char* name);
hipError_t hipModuleLaunchKernel(hipFunction_t function, unsigned int grid_x, unsigned int grid_y, unsigned int grid_z,
                                 unsigned int block_x, unsigned int block_y, unsigned int block_z,
                                 unsigned int shared_bytes, hipStream_t stream, void** arguments, void** extra);

hipError_t hipStreamBeginCapture(hipStream_t stream, hipStreamCaptureMode mode);
hipError_t hipStreamEndCapture(hipStream_t stream, hipGraph_t* graph);
hipError_t hipGraphInstantiate(hipGraphExec_t* executable, hipGraph_t graph, hipGraphNode_t* error_node, char* log,
                               size_t log_size);
hipError_t hipGraphDestroy(hipGraph_t graph);
hipError_t hipGraphLaunch(hipGraphExec_t executable, hipStream_t stream);
hipError_t hipGraphExecDestroy(hipGraphExec_t executable);
}
