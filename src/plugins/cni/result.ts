/**
 * The result of a chain (CNI specification, section 5, "Success") and what of it is an Attachment.
 *
 * A result comes from strangers' programs: it is checked here, once, and everything after trusts it.
 */
import { isIP } from 'node:net'
import type { Cidr, Resolver, Route } from '../contract.ts'

export interface CniInterface {
  readonly name: string
  readonly mac?: string
  readonly mtu?: number
  readonly sandbox?: string
}

export interface CniResult {
  readonly cniVersion: string
  readonly interfaces?: readonly CniInterface[]
  readonly ips?: readonly { readonly address: string; readonly gateway?: string; readonly interface?: number }[]
  readonly routes?: readonly { readonly dst: string; readonly gw?: string }[]
  readonly dns?: {
    readonly nameservers?: readonly string[]
    readonly domain?: string
    readonly search?: readonly string[]
  }
}

const isCidr = (x: unknown): x is string => {
  if (typeof x !== 'string') return false
  const [address = '', bits = '', more] = x.split('/')
  return (
    more === undefined &&
    isIP(address) > 0 &&
    /^\d{1,3}$/.test(bits) &&
    Number(bits) <= (isIP(address) === 4 ? 32 : 128)
  )
}
const listOf = (x: unknown): Record<string, unknown>[] | undefined =>
  x === undefined || x === null
    ? []
    : Array.isArray(x) && x.every((e) => typeof e === 'object' && e !== null)
      ? (x as Record<string, unknown>[])
      : undefined

/** What is wrong with something that should be a result; undefined when nothing is. */
export function flawOf(x: unknown): string | undefined {
  if (typeof x !== 'object' || x === null || Array.isArray(x)) return 'it printed no result'
  const r = x as Record<string, unknown>
  const [interfaces, ips, routes] = [listOf(r.interfaces), listOf(r.ips), listOf(r.routes)]
  if (interfaces === undefined || ips === undefined || routes === undefined)
    return 'interfaces, ips and routes of its result are not lists'
  for (const i of interfaces) if (typeof i.name !== 'string') return 'an interface of its result has no name'
  for (const ip of ips) {
    if (!isCidr(ip.address)) return `its result has the address ${JSON.stringify(ip.address)}`
    if (ip.gateway !== undefined && ip.gateway !== '' && !(typeof ip.gateway === 'string' && isIP(ip.gateway)))
      return `its result has the gateway ${JSON.stringify(ip.gateway)}`
    const n = ip.interface
    if (n !== undefined && !(Number.isInteger(n) && (n as number) < interfaces.length))
      return 'an address of its result names an interface that is not there'
  }
  for (const route of routes) if (!isCidr(route.dst)) return `its result has a route to ${JSON.stringify(route.dst)}`
  return undefined
}

/** The interface that was put into the VM's namespace under the name that was asked for. */
export const insideInterface = (r: CniResult, ifname: string): CniInterface | undefined =>
  (r.interfaces ?? []).find((i) => i.name === ifname && i.sandbox !== undefined && i.sandbox !== '')

const isV4 = (cidr: string): boolean => !cidr.includes(':')

/** Addresses of that interface, IPv4 first: a VM's first address is the one people are shown. */
export function addressesOf(r: CniResult, ifname: string): Cidr[] {
  const at = (r.interfaces ?? []).findIndex((i) => i.name === ifname && i.sandbox)
  const own = (r.ips ?? []).filter((ip) => ip.interface === undefined || at < 0 || ip.interface === at)
  return own.map((ip) => ip.address).sort((a, b) => Number(isV4(b)) - Number(isV4(a)))
}

/** A route without `gw` goes through the gateway of an address of its family, when there is one. */
export function routesOf(r: CniResult): Route[] {
  return (r.routes ?? []).map(({ dst, gw }) => {
    const via = gw || (r.ips ?? []).find((ip) => ip.gateway && isV4(ip.address) === isV4(dst))?.gateway
    return via ? { to: dst, via } : { to: dst }
  })
}

export function resolverOf(r: CniResult): Resolver | undefined {
  const servers = (r.dns?.nameservers ?? []).filter((s) => isIP(s) > 0)
  if (servers.length === 0) return undefined
  const search = [r.dns?.domain, ...(r.dns?.search ?? [])].filter((s): s is string => typeof s === 'string' && s !== '')
  return { servers, search: [...new Set(search)] }
}
