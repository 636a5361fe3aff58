/**
 * A stand: a subject that is up, with its own host namespace and its guests, ready to be measured.
 *
 * Every subject has a host namespace of its own, made in the same way, so that the rules and connections of one are not paid for by another:
 * HOST on its loopback link (the servers are there), a veth uplink with the default route, forwarding on, the same sysctls. Behind the uplink, whose MTU
 * is smaller than the guests', is another server (FAR).
 */

import type { SubjectInfo } from './contract.ts'
import { finished, Place } from './place.ts'
import { FAR, HOST, PATH_MTU } from './ports.ts'

export interface Station {
  readonly place: Place
  readonly address: string
  readonly ifname: string
}

/** A host namespace, and the place behind its uplink. */
export type HostPlace = Place & { readonly far: Place }

export interface Stand {
  readonly name: string
  readonly kind: SubjectInfo['kind']
  readonly version: string
  readonly note: string
  readonly host: HostPlace
  readonly guests: readonly Station[]
  /** The guest's way out reaches HOST. */
  readonly out: boolean
  /** PUBLISHED_PORT of HOST leads to the first guest. */
  readonly published: boolean
  readonly dns: string | undefined
  /** Measures that are tried on it; all when left out. */
  readonly only?: readonly string[]
  /** The processes in the middle. */
  readonly pids: readonly number[]
  /** Create a VM, run a command in it, destroy it: milliseconds from the wish to the command's end, and of a command once it is up. */
  readonly boot?: () => Promise<{ readonly create: number; readonly exec: number }>
}

export interface Subject {
  readonly name: string
  /** It boots VMs and does nothing else. */
  readonly boots?: boolean
  /** Throws, in one sentence, why it cannot be compared here. */
  open(): Promise<Stand>
}

/** In every namespace: connections of one measure must not run the next one out of ports, bursts must not be cut by the receiver. */
export const SYSCTLS: Readonly<Record<string, string>> = {
  'net.ipv4.ip_forward': '1',
  'net.ipv4.tcp_tw_reuse': '1',
  'net.ipv4.ip_local_port_range': '10000 65000',
}

/** Set what this namespace has of them. */
export async function tune(place: Place): Promise<void> {
  const lines = Object.entries(SYSCTLS).map(
    ([key, value]) => `echo "${value}" > /proc/sys/${key.replaceAll('.', '/')} 2>/dev/null || true`,
  )
  await place.sh(lines.join('\n'))
}

export async function makeHost(): Promise<HostPlace> {
  const [host, far] = await Promise.all([Place.make(), Place.make()])
  await host.sh(
    `ip addr add ${HOST}/32 dev lo
     ip link add up0 mtu ${PATH_MTU} type veth peer name up1 mtu ${PATH_MTU} netns ${far.netns.split('/')[2]}
     ip addr add 10.99.1.2/24 dev up0
     ip link set up0 up`,
  )
  await far.sh(`ip addr add ${FAR}/24 dev up1; ip link set up1 up; ip route add default via 10.99.1.2`)
  await host.sh(`ip route add default via ${FAR}`)
  await Promise.all([tune(host), tune(far)])
  return Object.assign(host, { far })
}

export async function makeGuest(): Promise<Place> {
  const guest = await Place.make()
  await tune(guest)
  return guest
}

/** The first line of what a program says about its version; throws when it is not installed. */
export async function versionOf(argv: readonly string[], find = /.+/): Promise<string> {
  try {
    const { stdout, stderr } = await finished(argv, 5000)
    return (find.exec(stdout) ?? find.exec(stderr))?.[0].trim() ?? 'unknown version'
  } catch (e) {
    if (/ENOENT/.test((e as Error).message)) throw new Error(`${argv[0]} is not installed`)
    return find.exec((e as Error).message)?.[0].trim() ?? 'unknown version'
  }
}
