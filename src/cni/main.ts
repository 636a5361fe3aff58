/**
 * noid-cni: a CNI plugin that puts a container on a network of noid's, through the daemon.
 *
 * One run is one command: parameters from the environment, configuration on standard input, a result or an error on standard
 * output. It keeps nothing: who is attached is the daemon's to know, by `NETWORK/CONTAINERID/IFNAME`.
 * Read: CNI SPEC.md 1.1.0, section 2 (execution protocol), section 5 (result types).
 */
import { existsSync } from 'node:fs'
import { enableCompileCache } from 'node:module'
import { homedir } from 'node:os'
import { join } from 'node:path'
import type { Client } from '../client/client.ts'
import {
  asCniError,
  CniError,
  type Config,
  code,
  NEWEST,
  type Parameters,
  type PortMapping,
  parseConfig,
  parseEnvironment,
  parseJson,
  SUPPORTED,
} from './protocol.ts'
import { mustMatch, resultOf } from './result.ts'

const INPUT_MAX = 4 << 20

export async function main(env: NodeJS.ProcessEnv = process.env): Promise<void> {
  if (!env.NODE_COMPILE_CACHE)
    enableCompileCache(join(env.XDG_CACHE_HOME || join(env.HOME || homedir(), '.cache'), 'noid'))
  let cniVersion: string = NEWEST
  let answer: unknown
  try {
    const p = parseEnvironment(env)
    const raw = parseJson(await standardInput())
    if ((SUPPORTED as readonly unknown[]).includes(raw.cniVersion)) cniVersion = raw.cniVersion as string
    answer =
      p.command === 'VERSION'
        ? { cniVersion: raw.cniVersion ?? NEWEST, supportedVersions: SUPPORTED }
        : await perform(p, parseConfig(raw, p))
  } catch (e) {
    const error = asCniError(e)
    const { message: msg, details } = error
    answer = { cniVersion, code: error.code, msg, ...(details === undefined ? {} : { details }) }
    process.exitCode = 1
  }
  if (answer !== undefined) process.stdout.write(`${JSON.stringify(answer, null, 2)}\n`)
}

async function standardInput(): Promise<string> {
  const chunks: Buffer[] = []
  let size = 0
  for await (const c of process.stdin) {
    size += (c as Buffer).length
    if (size > INPUT_MAX) throw new CniError(code.decode, `the network configuration is longer than ${INPUT_MAX} bytes`)
    chunks.push(c as Buffer)
  }
  return Buffer.concat(chunks).toString('utf8')
}

/** The answer, or undefined where the protocol has none. */
async function perform(p: Parameters, c: Config): Promise<unknown> {
  const client = await daemon(p, c)
  if (client === undefined) return undefined
  switch (p.command) {
    case 'ADD':
      return add(client, p, c)
    case 'DEL':
      await client.detach(c.network, idOf(c, p.containerId, p.ifname))
      return undefined
    case 'CHECK':
      return check(client, p, c)
    case 'GC':
      return gc(client, c)
    default:
      return status(client, c)
  }
}

/** The daemon, started when it is the own one; undefined when something is to be removed and there never was any. */
async function daemon(p: Parameters, c: Config): Promise<Client | undefined> {
  const { chooseTarget, connect } = await import('../client/daemon.ts')
  const target = chooseTarget(c.host ?? process.env.NOID_HOST)
  const removes = p.command === 'DEL' || p.command === 'GC'
  if (removes && target.own !== undefined && !existsSync(target.own.store)) return undefined
  return (await connect(target, 'of noid-cni')).client
}

/** A container may be on several CNI networks, and on one of them twice. */
const idOf = (c: Config, containerId: string, ifname: string): string => `${c.name}/${containerId}/${ifname}`

async function add(client: Client, p: Parameters, c: Config): Promise<unknown> {
  if (c.prevResult !== undefined)
    throw new CniError(code.invalidConfig, 'noid makes the interface, so it is the first plugin of a list')
  const attached = await client.attach(c.network, {
    id: idOf(c, p.containerId, p.ifname),
    netns: p.netns,
    ifname: p.ifname,
    name: p.args.get('K8S_POD_NAME') ?? p.containerId,
    mac: c.mac,
    ip: c.ips.length === 0 ? undefined : [...c.ips],
    ports: c.portMappings.map(spec),
  })
  return resultOf(attached, c.cniVersion)
}

/** As `--port` takes it. */
function spec(m: PortMapping): string {
  const host = m.hostIP.includes(':') ? `[${m.hostIP}]:` : m.hostIP === '' ? '' : `${m.hostIP}:`
  return `${host}${m.hostPort}:${m.containerPort}/${m.protocol}`
}

async function check(client: Client, p: Parameters, c: Config): Promise<undefined> {
  if (c.prevResult === undefined) throw new CniError(code.invalidConfig, 'CHECK was given no prevResult')
  const id = idOf(c, p.containerId, p.ifname)
  const a = await client.attachment(c.network, id, true).catch((e: unknown) => {
    const error = asCniError(e)
    if (error.details?.startsWith('ATTACHMENT_UNKNOWN') || error.details?.startsWith('VM_NOT_RUNNING'))
      throw new CniError(code.unknownContainer, `${p.containerId} is not attached to ${c.network}`, error.message)
    throw e
  })
  if (a.netns !== p.netns)
    throw new CniError(code.differs, `${p.containerId} is attached at ${a.netns}, and not at ${p.netns}`)
  mustMatch(a, c.prevResult)
}

/** What this CNI network has attached and the engine does not know any more. Others on the same noid network are not its affair. */
async function gc(client: Client, c: Config): Promise<undefined> {
  if (c.validAttachments === undefined)
    throw new CniError(code.invalidConfig, 'GC was given no cni.dev/valid-attachments')
  const valid = new Set(c.validAttachments.map((a) => idOf(c, a.containerID, a.ifname)))
  const all = await client.attachments(c.network).catch((e: unknown) => {
    if (asCniError(e).details?.startsWith('NETWORK_UNKNOWN')) return []
    throw e
  })
  const failed: unknown[] = []
  for (const a of all)
    if (a.id.startsWith(`${c.name}/`) && !valid.has(a.id))
      await client.detach(c.network, a.id).catch((e: unknown) => failed.push(e))
  if (failed.length > 0) throw failed[0]
}

/** Could an ADD be served now? */
async function status(client: Client, c: Config): Promise<undefined> {
  const [networks, backends] = await Promise.all([client.networks(), client.backends()])
  const name = networks.find((n) => n.name === c.network)?.backend ?? 'userspace'
  const backend = backends.find((b) => b.name === name)
  if (backend?.ok === true) return
  const problem = backend?.problems[0]
  throw new CniError(
    code.notAvailable,
    `the network backend ${name} cannot be used: ${problem?.what ?? 'it is not there'}`,
    problem?.hint,
  )
}
