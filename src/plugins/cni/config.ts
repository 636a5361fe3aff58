/**
 * What a cni network is told: a conflist (CNI specification, section 1) and where the plugins are.
 *
 * A conflist given by its path is read once and kept with the network: a file that changes later changes no network that
 * exists, because DEL must be given what ADD was given. Without any, the first *.conflist of /etc/cni/net.d is taken, as
 * container engines do.
 */
import { existsSync, readdirSync, readFileSync } from 'node:fs'
import { isAbsolute, join } from 'node:path'
import { NoidError } from '../../errors.ts'

/** Versions of the specification that chains are run by; the result has had one shape since 0.3.0. */
export const VERSIONS = ['0.3.0', '0.3.1', '0.4.0', '1.0.0', '1.1.0'] as const
export const DEFAULT_BIN_DIRS = ['/opt/cni/bin', '/usr/lib/cni', '/usr/libexec/cni'] as const
export const NET_D = '/etc/cni/net.d'

/** A plugin's own configuration; everything but `type` and `capabilities` is the plugin's affair. */
export interface PluginConf {
  readonly type: string
  readonly capabilities?: Readonly<Record<string, boolean>>
  readonly [key: string]: unknown
}

export interface Conflist {
  /** Absent in a single plugin's configuration and in what was typed by hand: the noid network's name. */
  readonly name?: string
  /** Lowest first; the highest that every plugin speaks is used. */
  readonly versions: readonly string[]
  readonly disableCheck: boolean
  readonly disableGC: boolean
  readonly plugins: readonly PluginConf[]
}

export interface CniConfig {
  readonly conflist: Conflist
  readonly binDirs: readonly string[]
}

const HINT =
  'give a conflist: --config conflist=/etc/cni/net.d/NAME.conflist, or --config FILE; keys are conflist and binDirs'

const refuse = (what: string): never => {
  throw new NoidError('INVALID_INPUT', { what: `the configuration of a cni network is not valid: ${what}`, hint: HINT })
}

const isObject = (x: unknown): x is Record<string, unknown> => typeof x === 'object' && x !== null && !Array.isArray(x)

/**
 * Parse what a person gave: {conflist?, binDirs?}, or a conflist itself.
 * @throws NoidError INVALID_INPUT
 */
export function parseConfig(raw: unknown, netD: string = NET_D): CniConfig {
  const given = raw ?? {}
  if (!isObject(given)) return refuse('it is not an object')
  if (Array.isArray(given.plugins) || typeof given.type === 'string')
    return { conflist: parseConflist(given), binDirs: DEFAULT_BIN_DIRS }
  for (const key of Object.keys(given)) if (key !== 'conflist' && key !== 'binDirs') refuse(`it knows no key "${key}"`)
  return { conflist: takeConflist(given.conflist, netD), binDirs: parseBinDirs(given.binDirs) }
}

function parseBinDirs(raw: unknown): readonly string[] {
  if (raw === undefined) return DEFAULT_BIN_DIRS
  const dirs: unknown[] = typeof raw === 'string' ? raw.split(':') : Array.isArray(raw) ? raw : []
  if (dirs.length === 0 || !dirs.every((d): d is string => typeof d === 'string' && isAbsolute(d) && !d.includes(':')))
    return refuse('binDirs is a list of absolute directories')
  return dirs
}

function takeConflist(raw: unknown, netD: string): Conflist {
  if (isObject(raw)) return parseConflist(raw)
  if (raw !== undefined && typeof raw !== 'string') return refuse('conflist is a path or an object')
  const path = raw ?? firstConflist(netD)
  if (path === undefined) return refuse(`no conflist was given and there is none in ${netD}`)
  if (!isAbsolute(path)) return refuse(`conflist is an absolute path, and "${path}" is not`)
  let text: string
  try {
    text = readFileSync(path, 'utf8')
  } catch (e) {
    return refuse(`${path} cannot be read (${(e as NodeJS.ErrnoException).code})`)
  }
  try {
    return parseConflist(JSON.parse(text))
  } catch (e) {
    if (e instanceof SyntaxError) return refuse(`${path} is not JSON: ${e.message}`)
    throw e
  }
}

function firstConflist(netD: string): string | undefined {
  if (!existsSync(netD)) return undefined
  const name = readdirSync(netD)
    .filter((f) => f.endsWith('.conflist'))
    .sort()[0]
  return name === undefined ? undefined : join(netD, name)
}

/**
 * Is a CNI network of that name configured where other engines look? Then it may have attachments that noid knows nothing of.
 */
export function isShared(name: string, netD: string = NET_D): boolean {
  if (!existsSync(netD)) return false
  return readdirSync(netD).some((f) => {
    try {
      return (JSON.parse(readFileSync(join(netD, f), 'utf8')) as { name?: unknown } | null)?.name === name
    } catch {
      return false
    }
  })
}

const NAME = /^[a-zA-Z0-9][a-zA-Z0-9_.-]*$/

/** A network configuration list; a single plugin's configuration is a list of one. */
export function parseConflist(raw: unknown): Conflist {
  if (!isObject(raw)) return refuse('a conflist is an object')
  const plugins = Array.isArray(raw.plugins) ? raw.plugins : typeof raw.type === 'string' ? [raw] : []
  if (plugins.length === 0) return refuse('the conflist has no plugins')
  const { name } = raw
  if (name !== undefined && !(typeof name === 'string' && NAME.test(name)))
    return refuse(`"${name}" is not a name of a CNI network`)
  return {
    ...(name === undefined ? {} : { name }),
    versions: parseVersions(raw),
    disableCheck: isTrue(raw.disableCheck),
    disableGC: isTrue(raw.disableGC),
    plugins: plugins.map(parsePlugin),
  }
}

/** The specification has these as "true" or "false", and engines take both. */
const isTrue = (x: unknown): boolean => x === true || x === 'true'

function parseVersions(raw: Record<string, unknown>): readonly string[] {
  const listed = [raw.cniVersion, raw.cniVersions].flat().filter((v) => v !== undefined)
  if (listed.length === 0) return refuse('the conflist has no cniVersion')
  const known = VERSIONS.filter((v) => listed.includes(v))
  if (known.length === 0)
    return refuse(`the conflist's cniVersion is ${listed.join(', ')}, and noid speaks ${VERSIONS.join(', ')}`)
  return known
}

function parsePlugin(raw: unknown): PluginConf {
  if (!isObject(raw) || typeof raw.type !== 'string' || raw.type === '') return refuse('a plugin has no type')
  // The type is a file's name in binDirs, never a way out of them.
  if (raw.type.includes('/') || raw.type.startsWith('.')) return refuse(`"${raw.type}" is not a plugin's type`)
  if (raw.capabilities !== undefined && !isObject(raw.capabilities))
    return refuse(`the capabilities of ${raw.type} are not an object`)
  return raw as PluginConf
}
