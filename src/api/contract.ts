/**
 * The HTTP contract between the CLI (src/client) and the daemon (src/daemon/server): routes, bodies, answers.
 *
 * Owns: every shape that crosses the unix socket, as zod schemas that both ends use; the paths are in routes.ts.
 * JSON over HTTP/1.1; an error's body is ErrorBody of src/errors.ts with its status. Long answers (logs, create's
 * progress) are NDJSON; exec upgrades the connection to frames (src/api/exec.ts).
 * Never does: I/O.
 */
import { z } from 'zod'

export { API_VERSION, routes } from './routes.ts'

export const vmName = z.string()
export const proto = z.enum(['tcp', 'udp'])

export const publish = z.object({
  proto,
  /** `*` for all addresses, 0.0.0.0 for all of IPv4, :: for all of IPv6. */
  hostAddress: z.string(),
  hostPort: z.number().int(),
  guestPort: z.number().int(),
})
export type Publish = z.infer<typeof publish>

/** A directory of the host that a VM sees. */
export const mount = z.strictObject({ source: z.string(), target: z.string(), readonly: z.boolean() })

export const vmState = z.enum(['created', 'starting', 'running', 'stopped', 'failed'])

export const vm = z.object({
  id: z.string(),
  name: z.string(),
  state: vmState,
  /** Why, when failed. */
  problem: z.string().nullable(),
  runtime: z.string(),
  network: z.string(),
  backend: z.string(),
  address: z.string().nullable(),
  address6: z.string().nullable(),
  mac: z.string(),
  cpus: z.number(),
  memMib: z.number(),
  image: z.string().nullable(),
  mounts: z.array(mount),
  ports: z.array(publish),
  pid: z.number().nullable(),
  createdAt: z.string(),
  startedAt: z.string().nullable(),
  /** "no", "on-failure", "on-failure:5" or "always": what happens when it ends on its own. */
  restart: z.string(),
  /** How often it was started again for that, since somebody started it or it ran for a while. */
  restarts: z.number(),
  /** When it will be started again on its own, where that is planned. */
  restartAt: z.string().nullable(),
})
export type Vm = z.infer<typeof vm>

export const createVm = z.strictObject({
  name: z.string(),
  networkBackend: z.string().optional(),
  network: z.string().optional(),
  /** Of either family, or one of each. */
  ip: z.union([z.string(), z.array(z.string())]).optional(),
  mac: z.string().optional(),
  /** "[HOSTIP:]HOST:GUEST[/udp]" as typed; parsed once, by the daemon. */
  ports: z.array(z.string()).default([]),
  runtime: z.string().optional(),
  cpus: z.number().int().min(1).max(64).default(1),
  memMib: z.number().int().min(16).default(512),
  image: z.string().optional(),
  mounts: z.array(mount).default([]),
  /** "no", "always", "on-failure" or "on-failure:N". */
  restart: z.string().default('no'),
  start: z.boolean().default(true),
})
export type CreateVm = z.input<typeof createVm>

/** What create and start answer: NDJSON lines of `step`, then one `done` or `error`. */
export type ProgressLine<Done = { readonly vm: Vm }> =
  | { readonly type: 'step'; readonly text: string }
  | { readonly type: 'note'; readonly text: string }
  | ({ readonly type: 'done' } & Done)
  | { readonly type: 'error'; readonly error: import('../errors.ts').ErrorBody }

export const network = z.object({
  id: z.string(),
  name: z.string(),
  backend: z.string(),
  /** `external`: the backend's own surroundings give the addresses, and subnet, gateway and services are not used. */
  addressing: z.enum(['noid', 'external']),
  subnet: z.string(),
  gateway: z.string(),
  services: z.string(),
  hostAddress: z.string(),
  /** False: an IPv6-only network, which does not use the four above. */
  ipv4: z.boolean(),
  /** null, and so are the three that follow: an IPv4-only network. */
  subnet6: z.string().nullable(),
  gateway6: z.string().nullable(),
  services6: z.string().nullable(),
  hostAddress6: z.string().nullable(),
  /** Whether the host has an interface on it, so that VMs can be reached by address. */
  hostReach: z.boolean(),
  domain: z.string(),
  mtu: z.number(),
  isolated: z.boolean(),
  allowHostPorts: z.array(z.number()),
  vms: z.array(z.string()),
  warnings: z.array(z.string()),
  createdAt: z.string(),
})
export type Network = z.infer<typeof network>

/** Of a VM or a network that was removed: what may have stayed of it on the machine, for a person. */
export interface Removed {
  readonly note?: string | undefined
}

export const createNetwork = z.strictObject({
  name: z.string(),
  backend: z.string().optional(),
  subnet: z.string().optional(),
  subnet6: z.string().optional(),
  /** Left out: both where the backend has both. */
  family: z.enum(['ipv4', 'ipv6']).optional(),
  mtu: z.number().int().min(576).max(65520).optional(),
  allowHost: z.array(z.number().int().min(1).max(65535)).default([]),
  config: z.record(z.string(), z.unknown()).optional(),
})
export type CreateNetwork = z.input<typeof createNetwork>

/** A network namespace of somebody else's (a container engine's), to be put on a network. */
export const attach = z.strictObject({
  /** The caller's own name for it; the same again gives the same. noid-cni: NETWORK/CONTAINERID/IFNAME. */
  id: z.string().min(1).max(512),
  /** Absolute path, as the daemon sees it: /run/netns/NAME or /proc/PID/ns/net. */
  netns: z.string().startsWith('/'),
  ifname: z
    .string()
    .regex(/^[^\s/:]{1,15}$/)
    .default('eth0'),
  /** Wanted as its DNS name; another one is made of it when it is taken. */
  name: z.string().optional(),
  mac: z.string().optional(),
  ip: z.union([z.string(), z.array(z.string())]).optional(),
  ports: z.array(z.string()).default([]),
})
export type Attach = z.input<typeof attach>

export const attached = z.object({
  id: z.string(),
  /** Its name in `noid list` and in the network's DNS. */
  name: z.string(),
  network: z.string(),
  netns: z.string(),
  state: vmState,
  ifname: z.string(),
  mac: z.string(),
  mtu: z.number(),
  /** Configured already, with the routes. */
  addresses: z.array(z.string()),
  routes: z.array(z.object({ to: z.string(), via: z.string().optional() })),
  dns: z.object({ servers: z.array(z.string()), search: z.array(z.string()) }).nullable(),
  ports: z.array(publish),
})
export type Attached = z.infer<typeof attached>

export const backend = z.object({
  name: z.string(),
  summary: z.string(),
  provides: z.array(z.string()),
  capabilities: z.object({
    addressing: z.string(),
    privileges: z.array(z.string()),
    publish: z.boolean(),
    dns: z.boolean(),
    isolation: z.boolean(),
    ipv6: z.boolean(),
  }),
  ok: z.boolean(),
  problems: z.array(z.object({ what: z.string(), hint: z.string().optional() })),
})
export type Backend = z.infer<typeof backend>

export const versionInfo = z.object({
  api: z.number(),
  version: z.string(),
  schema: z.number(),
  pid: z.number(),
  uptimeMs: z.number(),
  vms: z.number(),
  stateDir: z.string(),
  /** The files that it runs from are no longer there: it cannot start anything any more. */
  uprooted: z.boolean().default(false),
})
export type VersionInfo = z.infer<typeof versionInfo>

/** What of `noid prune` is wanted beside what is plainly left over. */
export const pruneRequest = z.strictObject({
  /** Stopped and failed VMs too. */
  vms: z.boolean().default(false),
  /** Images too that no VM is made of. */
  images: z.boolean().default(false),
  dryRun: z.boolean().default(false),
})
export type PruneRequest = z.input<typeof pruneRequest>

export interface Pruned {
  readonly kind: 'vm' | 'network' | 'vm-directory' | 'network-directory' | 'image' | 'template'
  readonly name: string
  readonly bytes: number
}
export interface PruneReport {
  readonly removed: readonly Pruned[]
  readonly failed: readonly { readonly name: string; readonly why: string }[]
  readonly bytes: number
  readonly dryRun: boolean
}

export const execStart = z.strictObject({
  argv: z.array(z.string()).min(1),
  env: z.record(z.string(), z.string()).default({}),
  cwd: z.string().optional(),
  user: z.string().optional(),
  tty: z.boolean().default(false),
  rows: z.number().int().optional(),
  cols: z.number().int().optional(),
})
export type ExecStart = z.input<typeof execStart>

/** What VMs with a kernel of their own boot. */
export const image = z.object({
  name: z.string(),
  /** Null: it is built when the first VM wants it. */
  id: z.string().nullable(),
  source: z.enum(['built-in', 'imported']),
  summary: z.string(),
  isDefault: z.boolean(),
  kernel: z.string().nullable(),
  /** Kernel arguments. */
  append: z.string().nullable(),
  /** On this disk; what images share counts for each. */
  bytes: z.number(),
  /** The disk as the VM sees it; null: it runs in RAM. */
  diskBytes: z.number().nullable(),
  createdAt: z.string().nullable(),
  /** "name=version" */
  packages: z.array(z.string()),
  vms: z.array(z.string()),
})
export type Image = z.infer<typeof image>

/** Build a built-in image: with the newest packages, and even if nothing changed with `force`. */
export const buildImage = z.strictObject({ force: z.boolean().default(false) })

/** Files as the daemon sees them: absolute. */
export const importImage = z.strictObject({
  name: z.string(),
  /** bzImage or vmlinux; absent: Debian's. */
  kernel: z.string().startsWith('/').optional(),
  /** The kernel's lib/modules/VERSION. */
  modules: z.string().startsWith('/').optional(),
  /** raw, qcow2 or squashfs; absent: the kernel alone, in RAM. */
  disk: z.string().startsWith('/').optional(),
  append: z
    .string()
    .max(1024)
    .regex(/^[\x20-\x7e]*$/)
    .optional(),
  replace: z.boolean().default(false),
})
export type ImportImage = z.input<typeof importImage>
