/**
 * Connection tracking of the host: what it must forget, so that nobody inherits a connection of a VM or of a published port that is no more, and
 * nobody's connection lives on beside the rule that is for it. Through `conntrack`.
 *
 * Theory. The kernel asks the rules once for each connection, with its first packet; afterwards its entry decides. Entries are the whole host's, also those
 * of connections that only pass by, so each is forgotten by whose it is, never by a port alone: who publishes 443 must not cut what others have with a
 * 443 elsewhere. A published port's answer for their guest (`--reply-src`). Before a port was published its traffic ended at an address of the host, by
 * the routing table, as `addrtype LOCAL` of the rules has it.
 * Never does: rules (netfilter.ts).
 */
import { execFile } from 'node:child_process'
import { BlockList, isIPv6 } from 'node:net'
import { promisify } from 'node:util'
import { everywhere, type PortRule } from './rules.ts'

const run = promisify(execFile)
const TOOL_MS = 15_000
/** Somebody else's connections end between reading and removing. */
const TRIES = 3
const NOTHING = { stdout: '' }
/** As conntrack calls them. */
export type Family = 'ipv4' | 'ipv6'
const familyOf = (address: string): Family => (address.includes(':') ? 'ipv6' : 'ipv4')

type HostPort = Pick<PortRule, 'proto' | 'hostAddress' | 'hostPort'>

/** Remove what matches from connection tracking. An entry that goes by itself meanwhile ends the program half way: then again. */
async function forget(...match: string[]): Promise<void> {
  for (let t = 0; t < TRIES; t++) {
    try {
      await run('conntrack', ['-D', ...match], { timeout: TOOL_MS, maxBuffer: 64 << 20 })
      return
    } catch (e) {
      // Some versions fail when there was nothing.
      if (/\b0 flow entries/.test((e as { stderr?: string }).stderr ?? '')) return
    }
  }
}

/** Connections of one family to the port, whoever's. */
function matchOf({ proto, hostPort }: HostPort, family: Family): string[] {
  return ['-f', family, '-p', proto, '--orig-port-dst', String(hostPort)]
}

/** Is the port published at addresses of the family? */
function inFamily({ hostAddress }: HostPort, family: Family): boolean {
  return hostAddress === '*' || familyOf(hostAddress) === family
}

/** Forget connections that were led to the VM of a published port, which is no more. */
export async function forgetPublished(p: PortRule): Promise<void> {
  for (const guest of [p.guestAddress, p.guestAddress6 ?? '']) {
    const family = familyOf(guest)
    if (guest === '' || !inFamily(p, family)) continue
    const at = everywhere(p.hostAddress) ? [] : ['--orig-dst', p.hostAddress]
    await forget(...matchOf(p, family), ...at, '--reply-src', guest, '--reply-port-src', String(p.guestPort))
  }
}

/** Addresses of the host, as the kernel has them. */
async function localAddresses(family: Family): Promise<BlockList> {
  const list = new BlockList()
  const argv = ['-j', family === 'ipv6' ? '-6' : '-4', 'route', 'show', 'table', 'local', 'type', 'local']
  const { stdout } = await run('ip', argv, { timeout: TOOL_MS, maxBuffer: 64 << 20 })
  for (const { dst } of JSON.parse(stdout || '[]') as { dst: string }[]) {
    const [address = '', bits] = dst.split('/')
    list.addSubnet(address, Number(bits ?? (isIPv6(address) ? 128 : 32)), family)
  }
  return list
}

/**
 * The host's own addresses at which somebody has asked for a port, a published one where it may be.
 * @param lasting only those with a TCP connection that is open
 */
export async function askedAt(p: HostPort, families: readonly Family[], lasting = false): Promise<Set<string>> {
  const found = new Set<string>()
  for (const family of families) {
    if (p.hostPort === 0 || !inFamily(p, family)) continue
    const argv = ['-L', ...matchOf(p, family)]
    // What cannot be listed cannot be forgotten either.
    const { stdout } = await run('conntrack', argv, { timeout: TOOL_MS, maxBuffer: 64 << 20 }).catch(() => NOTHING)
    if (stdout === '') continue
    const local = await localAddresses(family)
    for (const l of stdout.split('\n')) {
      const to = l.match(/ dst=(\S+)/)?.[1]
      if (to === undefined || (lasting && !/ ESTABLISHED /.test(l))) continue
      if ((everywhere(p.hostAddress) || to === p.hostAddress) && local.check(to, family)) found.add(to)
    }
  }
  return found
}

/**
 * Forget connections to a host port that is published now: they were made before there was the rule, and do not know it.
 * @param spare addresses at which connections were open before the port was had: they are those of a program that listens no more
 */
export async function forgetUnled(
  p: HostPort,
  families: readonly Family[],
  spare: ReadonlySet<string> = new Set(),
): Promise<void> {
  for (const to of await askedAt(p, families))
    if (!spare.has(to)) await forget(...matchOf(p, familyOf(to)), '--orig-dst', to)
}

/**
 * Forget connections of VMs that go, by address or subnet: whoever has an address next must not inherit them. Answers of
 * translated connections (`--reply-src`) cannot be asked for by subnet: those of published ports are forgotten by their VM.
 */
export async function forgetGuests(address: string): Promise<void> {
  const family = familyOf(address)
  await forget('-f', family, '--orig-src', address)
  await forget('-f', family, address.includes('/') ? '--orig-dst' : '--reply-src', address)
}
