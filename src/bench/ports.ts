/** The numbers that all stands share. */

/** An address of the host that is not loopback: where its servers are, for every subject. */
export const HOST = '10.99.0.1'
/** A server behind the host's uplink, and the MTU of the way there: guests believe in 1500 or more. */
export const FAR = '10.99.1.1'
export const PATH_MTU = 1400
/** iperf3, or the built-in server when there is none. */
export const GUEST_PORT = 5201
/** The built-in server. */
export const TOOL_PORT = 5202
export const UDP_PORT = 5203
/** Of the host, forwarded to GUEST_PORT of the first guest. */
export const PUBLISHED_PORT = 5301
