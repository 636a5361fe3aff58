/**
 * What both ends agree on before any shape: the API's version and the first part of each path.
 *
 * Apart from contract.ts because a command must start in a blink: the CLI needs these strings and the contract's types,
 * never zod itself, which costs 60 ms to load. Only the daemon validates.
 */

/** Raised when a shape changes so that an older other end would misread it. */
export const API_VERSION = 1

/**
 * method path → body, answer. `:vm` and `:net` are names.
 *
 * GET    /v1/version                      → VersionInfo
 * POST   /v1/daemon/stop                  → {}            the daemon ends, VMs go on
 * GET    /v1/backends                     → Backend[]
 * POST   /v1/prune             PruneRequest → PruneReport
 * GET    /v1/vms                          → Vm[]
 * POST   /v1/vms                CreateVm  → NDJSON ProgressLine
 * GET    /v1/vms/:vm                      → Vm
 * DELETE /v1/vms/:vm                      → {}            stops it first
 * POST   /v1/vms/:vm/start                → NDJSON ProgressLine
 * POST   /v1/vms/:vm/stop       {graceMs?} → Vm
 * POST   /v1/vms/:vm/restart              → NDJSON ProgressLine
 * GET    /v1/vms/:vm/logs?follow=0|1&lines=N → text stream
 * GET    /v1/vms/:vm/capture?snap=BYTES   → pcapng stream of the VM's frames, until either side closes
 * POST   /v1/vms/:vm/exec       ExecStart → 101, then frames of src/api/exec.ts
 * POST   /v1/vms/:vm/console     {}       → 101, then the same frames: the serial line, without codes and signals
 * GET    /v1/vms/:vm/ports                → Publish[]
 * POST   /v1/vms/:vm/ports      {ports: string[]} → Publish[]   (those added, with the ports picked for 0)
 * DELETE /v1/vms/:vm/ports      {ports: string[]} → Publish[]   (those removed)
 * GET    /v1/networks                     → Network[]
 * POST   /v1/networks           CreateNetwork → Network
 * GET    /v1/networks/:net                → Network
 * DELETE /v1/networks/:net                → {}
 * GET    /v1/networks/:net/stats          → NetworkStats of src/plugins/contract.ts
 * GET    /v1/networks/:net/capture?snap=BYTES → pcapng stream of every port's frames
 *
 * Images of VMs with a kernel of their own.
 * GET    /v1/images                       → Image[]
 * POST   /v1/images             ImportImage → NDJSON ProgressLine<{image}>
 * GET    /v1/images/:image                → Image
 * POST   /v1/images/:image/build {force?} → NDJSON ProgressLine<{image}>
 * DELETE /v1/images/:image                → {}
 *
 * Namespaces of other engines (noid-cni). Each is also a VM of the runtime `netns`, with everything a VM has but exec.
 * GET    /v1/networks/:net/attachments    → Attached[]
 * POST   /v1/networks/:net/attachments    Attach → Attached    makes the network as `create` does; the same id again
 *                                                              gives the same, with another namespace ATTACHED_ALREADY
 * GET    /v1/networks/:net/attachments/:id?check=0|1 → Attached  with check: an error unless its nic is as it should be
 * DELETE /v1/networks/:net/attachments/:id → {}                also when there is none, and wherever it is
 */
export const routes = {
  version: '/v1/version',
  daemonStop: '/v1/daemon/stop',
  backends: '/v1/backends',
  prune: '/v1/prune',
  vms: '/v1/vms',
  networks: '/v1/networks',
  images: '/v1/images',
} as const

export const CAPTURE_TYPE = 'application/x-pcapng'
/** Bytes kept of each frame: the headers at least; a frame with offloads has up to 64 KiB and its header. */
export const CAPTURE_SNAP_MIN = 14
export const CAPTURE_SNAP_MAX = 262_144
