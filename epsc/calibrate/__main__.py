from epsc.calibrate.run import main

main()
