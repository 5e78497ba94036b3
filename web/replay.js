// Runs a recording of compiled kernels through WebGPU: buffers, pipelines, dispatches in order, results compared.
// A recording is what llmserve/backends/recording.py writes; its first lines say what is in it.

const ALIGNMENT = 256; // of uniform blocks, on every adapter
const TYPES = { float32: Float32Array, int32: Int32Array, uint32: Uint32Array };

async function get(url) {
  const answer = await fetch(url, { cache: "no-cache" });
  if (!answer.ok) throw new Error(`there is no ${url}; make one with python web/example.py`);
  return answer;
}

// One file after the other: of two that are missing, the page always names the first.
export async function load(folder) {
  const recording = await (await get(`${folder}recording.json`)).json();
  const data = await (await get(`${folder}recording.bin`)).arrayBuffer();
  if (recording.version !== 1) throw new Error(`recordings of version ${recording.version} are not known here`);
  return { ...recording, data };
}

async function openDevice({ features, buffers }) {
  const adapter = await navigator.gpu?.requestAdapter({ powerPreference: "high-performance" });
  if (!adapter) throw new Error("this browser has no WebGPU adapter");
  const missing = features.filter((feature) => !adapter.features.has(feature));
  if (missing.length) throw new Error(`this adapter lacks ${missing.join(", ")}`);
  const largest = Math.max(...buffers);
  if (largest > adapter.limits.maxStorageBufferBindingSize)
    throw new Error(`a buffer of ${largest} bytes is more than this adapter lets kernels see`);
  const wanted = ["maxBufferSize", "maxStorageBufferBindingSize", "maxStorageBuffersPerShaderStage"]
    .concat(["maxComputeWorkgroupStorageSize", "maxComputeInvocationsPerWorkgroup", "maxComputeWorkgroupSizeX"]);
  const requiredLimits = Object.fromEntries(wanted.map((name) => [name, adapter.limits[name]]));
  const device = await adapter.requestDevice({ requiredFeatures: features, requiredLimits });
  return { device, name: adapter.info.description || `${adapter.info.vendor} ${adapter.info.architecture}` };
}

async function makePipeline(device, name, { code, writes }, uniformBytes) {
  const visibility = GPUShaderStage.COMPUTE;
  const entries = writes.map((write, binding) => {
    return { binding, visibility, buffer: { type: write ? "storage" : "read-only-storage" } };
  });
  const buffer = { type: "uniform", hasDynamicOffset: true, minBindingSize: uniformBytes };
  entries.push({ binding: writes.length, visibility, buffer });
  const group = device.createBindGroupLayout({ entries });
  const layout = device.createPipelineLayout({ bindGroupLayouts: [group] });
  const module = device.createShaderModule({ code, label: name });
  const problems = (await module.getCompilationInfo()).messages.filter((message) => message.type === "error");
  if (problems.length) throw new Error(`kernel ${name}, line ${problems[0].lineNum}: ${problems[0].message}`);
  return { group, pipeline: await device.createComputePipelineAsync({ layout, compute: { module, entryPoint: name } }) };
}

// Every dispatch's scalars, each block at an offset of its own.
function uniformBlocks(device, dispatches) {
  const words = new Uint32Array((dispatches.length * ALIGNMENT) / 4);
  dispatches.forEach(({ scalars }, i) => words.set(scalars, (i * ALIGNMENT) / 4));
  const uniforms = device.createBuffer({ size: words.byteLength, usage: GPUBufferUsage.UNIFORM | GPUBufferUsage.COPY_DST });
  device.queue.writeBuffer(uniforms, 0, words);
  return uniforms;
}

export async function replay(recording) {
  const { device, name: adapter } = await openDevice(recording);
  device.pushErrorScope("validation");
  device.pushErrorScope("out-of-memory");
  const usage = GPUBufferUsage.STORAGE | GPUBufferUsage.COPY_SRC | GPUBufferUsage.COPY_DST;
  const buffers = recording.buffers.map((size) => device.createBuffer({ size, usage }));
  for (const { buffer, at } of recording.contents)
    device.queue.writeBuffer(buffers[buffer], 0, recording.data, at, recording.buffers[buffer]);
  const sizes = Object.fromEntries(recording.dispatches.map((one) => [one.kernel, Math.ceil(one.scalars.length / 4) * 16]));
  const pipelines = Object.fromEntries(
    await Promise.all(
      Object.entries(recording.kernels).map(async ([name, kernel]) => [name, await makePipeline(device, name, kernel, sizes[name])]),
    ),
  );
  const uniforms = uniformBlocks(device, recording.dispatches);

  const began = performance.now();
  const encoder = device.createCommandEncoder();
  const pass = encoder.beginComputePass();
  recording.dispatches.forEach(({ kernel, workgroups, bindings }, i) => {
    const { pipeline, group } = pipelines[kernel];
    const entries = bindings.map(([buffer, offset, size], binding) => ({ binding, resource: { buffer: buffers[buffer], offset, size } }));
    entries.push({ binding: bindings.length, resource: { buffer: uniforms, size: sizes[kernel] } });
    pass.setPipeline(pipeline);
    pass.setBindGroup(0, device.createBindGroup({ layout: group, entries }), [i * ALIGNMENT]);
    pass.dispatchWorkgroups(...workgroups);
  });
  pass.end();
  const readbacks = recording.results.map(({ buffer, offset, n }) => {
    const readback = device.createBuffer({ size: n * 4, usage: GPUBufferUsage.MAP_READ | GPUBufferUsage.COPY_DST });
    encoder.copyBufferToBuffer(buffers[buffer], offset, readback, 0, n * 4);
    return readback;
  });
  device.queue.submit([encoder.finish()]);
  const errors = [await device.popErrorScope(), await device.popErrorScope()].filter(Boolean);
  if (errors.length) throw new Error(errors[0].message);
  await Promise.all(readbacks.map((readback) => readback.mapAsync(GPUMapMode.READ)));
  const milliseconds = performance.now() - began;

  const results = recording.results.map(({ name, dtype, at, n }, i) => {
    const got = new TYPES[dtype](readbacks[i].getMappedRange());
    const expected = new TYPES[dtype](recording.data, at, n);
    // A number that is none is as wrong as can be.
    const difference = got.reduce((most, value, j) => {
      const one = Math.abs(value - expected[j]);
      return Number.isNaN(one) ? Infinity : Math.max(most, one);
    }, 0);
    return { name, n, difference, equal: difference <= recording.tolerance };
  });
  device.destroy();
  return { adapter, milliseconds, dispatches: recording.dispatches.length, results };
}
