/**
 * Drops: everything the engine refuses, by reason, counted for each switch port. A refusal is never an exception.
 *
 * Owns: the catalogue (a name and a meaning for a person) and the counters. Reason 0 means "fine" and is never counted.
 * `count` is one addition into a typed array; text is made only when somebody asks, or captures.
 */
import type { DropRow } from '../../plugins/contract.ts'

const CATALOGUE = [
  ['none', ''],
  // -- the frame itself
  ['frame-short', 'a frame too short for its headers'],
  ['frame-long', 'a frame longer than 64 KiB'],
  ['vnet-header', 'offload metadata that contradicts the frame; the guest’s driver is broken or hostile'],
  ['ethertype', 'neither IP nor ARP: this network carries no VLAN tags or other protocols'],
  ['ipv6', 'IPv6, which this network does not carry; guests try it when they start: nothing is wrong'],
  ['ipv4', 'IPv4 or ARP, which this network does not carry; guests try it when they start: nothing is wrong'],
  ['arp-malformed', 'not an Ethernet/IPv4 ARP request or reply'],
  ['ipv4-malformed', 'an IPv4 header with a wrong version, length or checksum'],
  ['ipv4-source-route', 'an IPv4 packet with source routing, which nobody should use (RFC 7126)'],
  ['ipv6-malformed', 'an IPv6 header with a wrong version or length'],
  ['ipv6-extension', 'IPv6 extension headers that are not known, too many, or in a wrong place'],
  ['ipv6-source-route', 'an IPv6 packet with source routing (RFC 5095)'],
  ['ipv6-header-chain', 'a first fragment that does not hold all headers, which hides what is behind them (RFC 7112)'],
  ['tcp-malformed', 'a TCP header with a wrong length'],
  ['udp-malformed', 'a UDP header with a wrong length'],
  ['udp-unsummed', 'a UDP datagram over IPv6 without a checksum'],
  ['nd-malformed', 'neighbour discovery with a wrong length or hop limit, or in fragments (RFC 4861, RFC 6980)'],
  ['icmp-malformed', 'an ICMP message that is too short'],
  ['checksum', 'a TCP, UDP or ICMP checksum that is wrong: damaged on the way, or forged'],
  // -- who sent it
  ['guard-mac', 'a source MAC that belongs to another port or to the gateway: a cloned VM, or forged'],
  ['guard-mac-limit', 'more source MACs behind one port than a VM may have'],
  ['guard-address', 'a source address that is not the VM’s own: a static address in the guest, or forged'],
  ['guard-address-limit', 'more IPv6 addresses in use at once than one VM may have'],
  ['address-taken', 'a question whether an IPv6 address is free, which another VM has: the VM was told so'],
  ['guard-nd', 'neighbour discovery that speaks for an address or a MAC that is not the VM’s own'],
  ['guard-ra', 'router advertisements from a VM: only the network’s gateway is a router'],
  ['guard-arp', 'ARP that speaks for an address or a MAC that is not the VM’s own'],
  ['guard-dhcp-server', 'DHCP answers from a VM: only the network’s own service gives leases'],
  ['guard-redirect', 'an ICMP redirect or router advertisement from a VM'],
  ['guard-host', 'a frame of the host’s interface that does not come from the host’s address'],
  ['not-router', 'a packet for somewhere else, sent to the services of a network whose router is the kernel'],
  ['host-through', 'a packet of the host for somewhere else: the network carries none for it'],
  // -- where it goes
  ['hairpin', 'a frame for the port it came from'],
  ['isolated', 'to a VM or the host from an isolated network'],
  ['host-foreign', 'to the host’s interface, but not for the host’s address: the host is nobody’s router'],
  ['no-route', 'to an address of the network that nobody has'],
  ['scope', 'from a link-local address to somewhere else'],
  ['broadcast-leaving', 'broadcast or multicast that would leave the network; nothing is wrong'],
  ['storm', 'more broadcast or multicast than one port may make the switch copy'],
  ['port-busy', 'the receiving VM’s queue was full'],
  ['port-absent', 'the receiving VM, or its interface, is not up'],
  ['port-error', 'the receiving port refused the frame'],
  ['port-gone', 'a frame of a port that is not attached'],
  // -- the gateway
  ['ttl', 'TTL used up at the gateway (traceroute does this on purpose)'],
  ['protocol', 'an IP protocol other than TCP, UDP and ICMP cannot leave the network'],
  ['icmp-unhandled', 'an ICMP message that needs no answer'],
  ['icmp-rate', 'more ICMP errors than may be sent each second'],
  ['closed', 'to a port of the gateway on which nothing listens'],
  ['fragment-limit', 'more fragmented packets at once than memory is kept for'],
  ['fragment-overlap', 'fragments that overlap, which only attacks do (RFC 5722)'],
  ['fragment-timeout', 'a fragmented packet of which a part never came'],
  ['fragment-malformed', 'a fragment with a wrong length or beyond 64 KiB'],
  ['too-big', 'a packet larger than the path with "do not fragment"; the sender was told'],
  // -- policy, by rule
  ['deny-isolated', 'refused: an isolated VM reaches the outside and nothing else'],
  ['deny-network', 'refused: the destination is another noid network'],
  ['deny-loopback', 'refused: the host’s loopback; `--allow-host PORT` opens one port at the host’s address'],
  ['deny-link-local', 'refused: link-local and metadata addresses'],
  ['deny-reserved', 'refused: an address that cannot be a destination'],
  ['unreachable', 'the host has no route to the destination'],
  // -- limits
  ['flow-limit', 'the VM has as many flows as it may have'],
  ['flow-table-full', 'the network has as many flows as it may have; the last of them are for VMs with few'],
  ['half-open-limit', 'too many connections of the VM wait for an answer from outside'],
  ['udp-evicted', 'the oldest idle UDP flow was given up for a new one'],
  ['ping-evicted', 'the oldest ping flow was given up for a new one'],
  ['host-socket', 'the host gave no socket (its limits, or its rights)'],
  ['host-send', 'the host’s socket took no more'],
  ['ping-forbidden', 'the host allows no ICMP sockets: `sysctl net.ipv4.ping_group_range` opens them'],
  ['publish-no-guest', 'a client of a published port whose VM is not attached'],
  ['publish-ports', 'no free port is left to show a client of the host by'],
  ['no-flow', 'a segment that belongs to no connection'],
  ['tcp-refused', 'a segment outside its connection’s window or with an unacceptable state'],
] as const

export type DropName = (typeof CATALOGUE)[number][0]
/** A reason's number; 0 is none. */
export type Drop = number

/** Reasons by name: `DROP['guard-mac']`. */
export const DROP = Object.freeze(Object.fromEntries(CATALOGUE.map(([name], i) => [name, i]))) as Readonly<
  Record<DropName, Drop>
>

const REASONS = CATALOGUE.length

/** Reasons that are not about the frame which came in: what it caused, or somebody else's that made room. */
const ABOUT_ANOTHER = new Set<string>([
  'port-busy',
  'port-absent',
  'port-error',
  'icmp-rate',
  'fragment-limit',
  'fragment-timeout',
  'udp-evicted',
  'ping-evicted',
])

/** Whoever shows refused frames beside counting them. */
export interface DropObserver {
  /** The frame that came in by `port` was refused; `comment` is UTF-8 for a person. */
  dropped(port: number, comment: Uint8Array): void
}

const comments = new Map<string, Uint8Array>()

function commentOn(name: string, meaning: string): Uint8Array {
  let comment = comments.get(name)
  if (comment === undefined) {
    comment = new TextEncoder().encode(`${name}: ${meaning}`)
    comments.set(name, comment)
  }
  return comment
}

/** A reason as a capture tells it: its name and its meaning. */
export const dropComment = (d: Drop): Uint8Array => commentOn(CATALOGUE[d][0], CATALOGUE[d][1])

export class Drops {
  readonly #counts: Float64Array
  readonly #ports: number
  /** Reasons of services, by name: rare, so a map will do. */
  readonly #named = new Map<string, { meaning: string; counts: Float64Array }>()
  /** Set while somebody captures. */
  observer: DropObserver | undefined

  /** @param ports switch ports at most; index −1 counts for the gateway itself */
  constructor(ports: number) {
    this.#ports = ports
    this.#counts = new Float64Array((ports + 1) * REASONS)
  }

  count(port: number, reason: Drop): void {
    this.#counts[(port + 1) * REASONS + reason]++
    if (this.observer !== undefined && !ABOUT_ANOTHER.has(CATALOGUE[reason][0]))
      this.observer.dropped(port, dropComment(reason))
  }

  /** Count what a service refuses, by its own catalogue. */
  countNamed(port: number, name: string, meaning: string): void {
    let entry = this.#named.get(name)
    if (entry === undefined) {
      entry = { meaning, counts: new Float64Array(this.#ports + 1) }
      this.#named.set(name, entry)
    }
    entry.counts[port + 1]++
    this.observer?.dropped(port, commentOn(name, meaning))
  }

  of(port: number, reason: Drop): number {
    return this.#counts[(port + 1) * REASONS + reason]
  }

  /** Of all ports together. */
  total(reason: Drop): number {
    let n = 0
    for (let p = -1; p < this.#ports; p++) n += this.of(p, reason)
    return n
  }

  /** A port's index is given to somebody else. */
  clear(port: number): void {
    this.#counts.fill(0, (port + 1) * REASONS, (port + 2) * REASONS)
    for (const { counts } of this.#named.values()) counts[port + 1] = 0
  }

  /** For people: what was counted, `vm` naming a port. */
  rows(vm: (port: number) => string): DropRow[] {
    const rows: DropRow[] = []
    const row = (p: number, reason: string, count: number, meaning: string) => {
      if (count > 0) rows.push({ vm: p < 0 ? '-' : vm(p), reason, count, meaning })
    }
    for (let p = -1; p < this.#ports; p++) {
      for (let r = 1; r < REASONS; r++) row(p, CATALOGUE[r][0], this.of(p, r), CATALOGUE[r][1])
      for (const [name, { meaning, counts }] of this.#named) row(p, name, counts[p + 1], meaning)
    }
    return rows
  }
}
