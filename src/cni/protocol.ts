/**
 * The CNI protocol as a plugin sees it: what an engine sends, what it is answered (specification 1.1.0, sections 2 and 5).
 *
 * Everything that comes in is checked here, once, with the specification's error codes. Pure.
 */
import { NoidError } from '../errors.ts'

/** Highest last. GC and STATUS came with 1.1.0, CHECK with 0.4.0; before 1.0.0 an address says its family. */
export const SUPPORTED = ['0.3.0', '0.3.1', '0.4.0', '1.0.0', '1.1.0'] as const
/** What is answered when the engine did not say, or said it so that nobody could read it. */
export const NEWEST = '1.1.0'

/** Specification, section 2, "Error": well-known codes; 100 and above are the plugin's own. */
export const code = {
  incompatibleVersion: 1,
  unsupportedField: 2,
  unknownContainer: 3,
  invalidEnvironment: 4,
  io: 5,
  decode: 6,
  invalidConfig: 7,
  tryAgainLater: 11,
  notAvailable: 50,
  /** noid refused: `details` has its own code. */
  refused: 100,
  /** CHECK: what is there is not what was made. */
  differs: 101,
} as const

export class CniError extends Error {
  readonly code: number
  readonly details: string | undefined

  constructor(code: number, message: string, details?: string) {
    super(message)
    this.code = code
    this.details = details
  }
}

/** Any fault as one of the protocol's. */
export function asCniError(e: unknown): CniError {
  if (e instanceof CniError) return e
  if (e instanceof NoidError) {
    const again = e.code === 'DAEMON_UNREACHABLE' || e.code === 'DATAPLANE_LOST'
    const details = `${e.code}${e.hint === undefined ? '' : `: ${e.hint}`}`
    return new CniError(again ? code.tryAgainLater : code.refused, e.message, details)
  }
  return new CniError(code.io, e instanceof Error ? e.message : String(e))
}

// -- parameters ----------------------------------------------------------------------------------------------------------

export type Command = 'ADD' | 'DEL' | 'CHECK' | 'GC' | 'STATUS' | 'VERSION'
const SINCE: Readonly<Record<Command, string>> = {
  ADD: '0.1.0',
  DEL: '0.1.0',
  VERSION: '0.1.0',
  CHECK: '0.4.0',
  GC: '1.1.0',
  STATUS: '1.1.0',
}

export const atLeast = (version: string, wanted: string): boolean => {
  const [a, b] = [version, wanted].map((v) => v.split('.').map(Number)) as [number[], number[]]
  for (let i = 0; i < 3; i++) if (a[i] !== b[i]) return (a[i] ?? 0) > (b[i] ?? 0)
  return true
}

export interface Parameters {
  readonly command: Command
  readonly containerId: string
  /** May be empty at DEL: the namespace is gone. */
  readonly netns: string
  readonly ifname: string
  readonly args: ReadonlyMap<string, string>
}

const NAME = /^[a-zA-Z0-9][a-zA-Z0-9_.-]*$/
const IFNAME = /^[^\s/:]{1,15}$/

export function parseEnvironment(env: NodeJS.ProcessEnv): Parameters {
  const bad = (what: string): never => {
    throw new CniError(code.invalidEnvironment, what)
  }
  const command = (env.CNI_COMMAND ?? '') as Command
  if (!(command in SINCE)) bad(command ? `CNI_COMMAND ${command} is unknown` : 'CNI_COMMAND is not set')
  const attachment = command === 'ADD' || command === 'DEL' || command === 'CHECK'
  const containerId = env.CNI_CONTAINERID ?? ''
  const ifname = env.CNI_IFNAME ?? ''
  const netns = env.CNI_NETNS ?? ''
  if (attachment) {
    if (!NAME.test(containerId)) bad(`CNI_CONTAINERID "${containerId}" is not a container's id`)
    if (!IFNAME.test(ifname) || ifname === '.' || ifname === '..')
      bad(`CNI_IFNAME "${ifname}" is not an interface's name`)
    if (netns === '' && command !== 'DEL') bad('CNI_NETNS is not set')
    if (netns !== '' && !netns.startsWith('/')) bad(`CNI_NETNS "${netns}" is not an absolute path`)
  }
  return { command, containerId, netns, ifname, args: parseArgs(env.CNI_ARGS ?? '') }
}

/** "K=V;K=V" */
function parseArgs(text: string): ReadonlyMap<string, string> {
  const args = new Map<string, string>()
  for (const pair of text.split(';').filter((p) => p !== '')) {
    const i = pair.indexOf('=')
    if (i <= 0) throw new CniError(code.invalidEnvironment, `CNI_ARGS has "${pair}", which is no KEY=VALUE`)
    args.set(pair.slice(0, i), pair.slice(i + 1))
  }
  return args
}

// -- the configuration on stdin ------------------------------------------------------------------------------------------

export interface PortMapping {
  readonly hostPort: number
  readonly containerPort: number
  readonly protocol: 'tcp' | 'udp'
  readonly hostIP: string
}

export interface Config {
  readonly cniVersion: string
  /** The CNI network's name. */
  readonly name: string
  /** The noid network. */
  readonly network: string
  /** A daemon's socket; the own daemon, started on demand, when absent. */
  readonly host: string | undefined
  /** Wished for: of each family at most one. */
  readonly ips: readonly string[]
  readonly mac: string | undefined
  readonly portMappings: readonly PortMapping[]
  readonly prevResult: Record<string, unknown> | undefined
  readonly validAttachments: readonly { readonly containerID: string; readonly ifname: string }[] | undefined
}

const isObject = (x: unknown): x is Record<string, unknown> => typeof x === 'object' && x !== null && !Array.isArray(x)

export function parseJson(text: string): Record<string, unknown> {
  let raw: unknown
  try {
    raw = JSON.parse(text)
  } catch (e) {
    throw new CniError(code.decode, 'the network configuration on standard input is not JSON', (e as Error).message)
  }
  if (!isObject(raw)) throw new CniError(code.decode, 'the network configuration on standard input is not an object')
  return raw
}

/** The version asked for; an engine that says none speaks 0.1.0, which is too old. */
export function versionOf(raw: Record<string, unknown>): string {
  const v = raw.cniVersion ?? '0.1.0'
  if (!(SUPPORTED as readonly unknown[]).includes(v))
    throw new CniError(
      code.incompatibleVersion,
      `CNI version ${v} is not spoken here`,
      `noid-cni speaks ${SUPPORTED.join(', ')}`,
    )
  return v as string
}

export function parseConfig(raw: Record<string, unknown>, p: Parameters): Config {
  const bad = (what: string): never => {
    throw new CniError(code.invalidConfig, what)
  }
  const text = (key: string): string | undefined => {
    const v = raw[key]
    return v === undefined || typeof v === 'string' ? v : bad(`"${key}" is not text`)
  }
  const cniVersion = versionOf(raw)
  if (!atLeast(cniVersion, SINCE[p.command]))
    throw new CniError(code.invalidEnvironment, `CNI ${cniVersion} has no ${p.command}`)
  const name = text('name') ?? ''
  if (!NAME.test(name)) bad(`"name" is "${name}", which is not a network's name`)
  if (isObject(raw.ipam) && raw.ipam.type !== undefined)
    throw new CniError(
      code.unsupportedField,
      `"ipam" names the plugin ${raw.ipam.type}, and noid gives the addresses itself`,
      'leave "ipam" out; noid network create NAME --subnet CIDR chooses the subnet',
    )
  const runtime = isObject(raw.runtimeConfig) ? raw.runtimeConfig : {}
  const args = isObject(raw.args) && isObject(raw.args.cni) ? raw.args.cni : {}
  const ips = runtime.ips ?? args.ips ?? p.args.get('IP')
  const valid = raw['cni.dev/valid-attachments'] ?? raw['cni.dev/attachments']
  return {
    cniVersion,
    name,
    network: text('network') ?? 'default',
    host: text('host'),
    ips: firstOfEach(ips, bad),
    mac: [runtime.mac, args.mac, p.args.get('MAC')].find((m): m is string => typeof m === 'string' && m !== ''),
    portMappings: parsePorts(runtime.portMappings, bad),
    prevResult: isObject(raw.prevResult) ? raw.prevResult : undefined,
    validAttachments: valid === undefined ? undefined : parseValid(valid, bad),
  }
}

/** With or without a prefix, as engines differ; the prefix is the network's. */
function firstOfEach(ips: unknown, bad: (what: string) => never): string[] {
  const list = (Array.isArray(ips) ? ips : typeof ips === 'string' ? ips.split(',') : []) as unknown[]
  const texts = list.map((ip) => (typeof ip === 'string' ? ip : bad('"ips" is not a list of addresses')))
  return [false, true].flatMap((six) => texts.find((ip) => ip.includes(':') === six)?.split('/')[0] ?? [])
}

function parsePorts(raw: unknown, bad: (what: string) => never): PortMapping[] {
  if (raw === undefined || raw === null) return []
  if (!Array.isArray(raw)) return bad('"portMappings" is not a list')
  const mappings = raw.flatMap((m: unknown) => {
    if (!isObject(m)) return bad('a port mapping is not an object')
    const { hostPort, containerPort, hostIP = '' } = m
    const protocol = String(m.protocol ?? 'tcp').toLowerCase()
    const port = (x: unknown): x is number => Number.isInteger(x) && (x as number) >= 0 && (x as number) < 65_536
    if (!port(hostPort) || !port(containerPort) || typeof hostIP !== 'string')
      return bad('a port mapping has no usable ports')
    if (protocol !== 'tcp' && protocol !== 'udp')
      throw new CniError(code.unsupportedField, `noid forwards tcp and udp, not ${protocol}`)
    // Kubernetes has an entry for every port of a container; those without a host port ask for nothing.
    if (hostPort === 0) return []
    return [{ hostPort, containerPort, protocol, hostIP } satisfies PortMapping]
  })
  // A pair that engines give for "all addresses" is one of noid's, which is IPv4 alone on a network that has nothing else.
  const pairs = (m: PortMapping, hostIP: string): boolean =>
    mappings.some(
      (o) =>
        o.hostIP === hostIP &&
        o.hostPort === m.hostPort &&
        o.protocol === m.protocol &&
        o.containerPort === m.containerPort,
    )
  return mappings.flatMap((m) => {
    if (m.hostIP === '::' && (pairs(m, '') || pairs(m, '0.0.0.0'))) return []
    return m.hostIP === '0.0.0.0' && pairs(m, '::') ? [{ ...m, hostIP: '' }] : [m]
  })
}

function parseValid(raw: unknown, bad: (what: string) => never): { containerID: string; ifname: string }[] {
  if (!Array.isArray(raw)) return bad('the list of valid attachments is not a list')
  return raw.map((a: unknown) => {
    if (!isObject(a) || typeof a.containerID !== 'string' || typeof a.ifname !== 'string')
      return bad('a valid attachment has no containerID and ifname')
    return { containerID: a.containerID, ifname: a.ifname }
  })
}
