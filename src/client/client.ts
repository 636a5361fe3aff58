/**
 * The daemon's API as typed functions: one function is one route of src/api/routes.ts.
 *
 * Never does: rendering, choosing a socket, starting a daemon (all in their own files). Shapes are trusted: both ends
 * come from one contract, and a daemon of another version is found out before (daemon.ts).
 */
import type {
  Attach,
  Attached,
  Backend,
  CreateNetwork,
  CreateVm,
  ExecStart,
  Image,
  ImportImage,
  Network,
  ProgressLine,
  PruneReport,
  PruneRequest,
  Publish,
  Removed,
  VersionInfo,
  Vm,
} from '../api/contract.ts'
import { EXEC_PROTOCOL } from '../api/exec.ts'
import { routes } from '../api/routes.ts'
import { NoidError } from '../errors.ts'
import type { NetworkStats } from '../plugins/contract.ts'
import { json, ndjson, send, upgrade, type Wire } from './http.ts'

export type Progress = (line: { readonly type: 'step' | 'note'; readonly text: string }) => void

const vmPath = (name: string): string => `${routes.vms}/${encodeURIComponent(name)}`
const imagePath = (name: string): string => `${routes.images}/${encodeURIComponent(name)}`
const netPath = (name: string): string => `${routes.networks}/${encodeURIComponent(name)}`

export class Client {
  readonly #wire: Wire

  constructor(socket: string) {
    this.#wire = { socket }
  }

  get socket(): string {
    return this.#wire.socket
  }

  version = (signal?: AbortSignal): Promise<VersionInfo> => json(this.#wire, 'GET', routes.version, undefined, signal)
  stopDaemon = (): Promise<unknown> => json(this.#wire, 'POST', routes.daemonStop, {})
  backends = (): Promise<Backend[]> => json(this.#wire, 'GET', routes.backends)
  prune = (want: PruneRequest): Promise<PruneReport> => json(this.#wire, 'POST', routes.prune, want)

  vms = (): Promise<Vm[]> => json(this.#wire, 'GET', routes.vms)
  vm = (name: string): Promise<Vm> => json(this.#wire, 'GET', vmPath(name))
  create = (body: CreateVm, progress: Progress): Promise<Vm> => this.#watch('POST', routes.vms, body, progress)
  start = (name: string, progress: Progress): Promise<Vm> => this.#watch('POST', `${vmPath(name)}/start`, {}, progress)
  restart = (name: string, progress: Progress): Promise<Vm> =>
    this.#watch('POST', `${vmPath(name)}/restart`, {}, progress)
  stop = (name: string, graceMs?: number): Promise<Vm> =>
    json(this.#wire, 'POST', `${vmPath(name)}/stop`, graceMs === undefined ? {} : { graceMs })
  destroy = (name: string): Promise<Removed> => json(this.#wire, 'DELETE', vmPath(name))

  ports = (name: string): Promise<Publish[]> => json(this.#wire, 'GET', `${vmPath(name)}/ports`)
  addPorts = (name: string, ports: readonly string[]): Promise<Publish[]> =>
    json(this.#wire, 'POST', `${vmPath(name)}/ports`, { ports })
  removePorts = (name: string, ports: readonly string[]): Promise<Publish[]> =>
    json(this.#wire, 'DELETE', `${vmPath(name)}/ports`, { ports })

  networks = (): Promise<Network[]> => json(this.#wire, 'GET', routes.networks)
  network = (name: string): Promise<Network> => json(this.#wire, 'GET', netPath(name))
  createNetwork = (body: CreateNetwork): Promise<Network> => json(this.#wire, 'POST', routes.networks, body)
  removeNetwork = (name: string): Promise<Removed> => json(this.#wire, 'DELETE', netPath(name))
  stats = (name: string): Promise<NetworkStats> => json(this.#wire, 'GET', `${netPath(name)}/stats`)

  images = (): Promise<Image[]> => json(this.#wire, 'GET', routes.images)
  image = (name: string): Promise<Image> => json(this.#wire, 'GET', imagePath(name))
  buildImage = async (name: string, force: boolean, progress: Progress): Promise<Image> =>
    (await this.#done<{ image: Image }>('POST', `${imagePath(name)}/build`, { force }, progress)).image
  importImage = async (body: ImportImage, progress: Progress): Promise<Image> =>
    (await this.#done<{ image: Image }>('POST', routes.images, body, progress)).image
  removeImage = (name: string): Promise<unknown> => json(this.#wire, 'DELETE', imagePath(name))

  attachments = (net: string): Promise<Attached[]> => json(this.#wire, 'GET', `${netPath(net)}/attachments`)
  attach = (net: string, body: Attach): Promise<Attached> =>
    json(this.#wire, 'POST', `${netPath(net)}/attachments`, body)
  attachment = (net: string, id: string, check = false): Promise<Attached> =>
    json(this.#wire, 'GET', `${netPath(net)}/attachments/${encodeURIComponent(id)}?check=${check ? 1 : 0}`)
  detach = (net: string, id: string): Promise<unknown> =>
    json(this.#wire, 'DELETE', `${netPath(net)}/attachments/${encodeURIComponent(id)}`)

  /** What the VM's init printed, as a byte stream; with `follow` it ends when the caller destroys it. */
  logs = (name: string, follow: boolean, lines: number): Promise<NodeJS.ReadableStream> =>
    send(this.#wire, 'GET', `${vmPath(name)}/logs?follow=${follow ? 1 : 0}&lines=${lines}`)

  /** Live pcapng of a VM, or of a whole network; destroying the stream ends the capture. */
  capture = (kind: 'vm' | 'network', name: string, snap?: number): Promise<NodeJS.ReadableStream> =>
    send(
      this.#wire,
      'GET',
      `${kind === 'vm' ? vmPath(name) : netPath(name)}/capture${snap === undefined ? '' : `?snap=${snap}`}`,
    )

  /** The VM's serial line, as the frames of a command. */
  console = (name: string) => upgrade(this.#wire, `${vmPath(name)}/console`, EXEC_PROTOCOL, {})
  exec = (name: string, body: ExecStart) => upgrade(this.#wire, `${vmPath(name)}/exec`, EXEC_PROTOCOL, body)

  async #watch(method: string, path: string, body: unknown, progress: Progress): Promise<Vm> {
    return (await this.#done<{ vm: Vm }>(method, path, body, progress)).vm
  }

  async #done<T extends object>(method: string, path: string, body: unknown, progress: Progress): Promise<T> {
    for await (const line of ndjson<ProgressLine<T>>(this.#wire, method, path, body)) {
      if (line.type === 'done') return line
      if (line.type === 'error') throw NoidError.from(line.error)
      progress(line)
    }
    throw new NoidError('DAEMON_UNREACHABLE', { socket: this.#wire.socket, why: 'it stopped in the middle' })
  }
}
